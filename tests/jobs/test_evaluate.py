"""Test the job: mistakes and failures are one line, and what it prints."""

import errno
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from PIL import Image

from jobs import evaluate, prepare
from jobs.cli.common import run_job
from pipeline.config import Config
from pipeline.data import load_manifest
from pipeline.evaluation import outputs
from pipeline.tracking import connect
from tests.pipeline.conftest import scenes  # noqa: F401
from tests.pipeline.promotion.conftest import add_version
from tests.stores import new_store


@pytest.fixture
def options(tmp_path: Path, scenes) -> list[str]:  # noqa: F811
    """Return the options for a set, and a store whose model ``shapes`` has one version for it."""
    uri = new_store(tmp_path)
    config = Config.from_dict({"tracking": {"uri": uri}})
    add_version(uri, config, load_manifest(scenes["test"]).classes)
    return [f"--tracking.uri={uri}", f"--data={scenes['test']}", "--resamples=5"]


def failure(options: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the job; return its exit code and its last line on stderr."""
    with pytest.raises(SystemExit) as stop:
        run_job(evaluate.main, options)
    sys.stdout.flush()
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return int(stop.value.code), error.splitlines()[-1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/squares/1", "model 'squares' does not exist in sqlite.*; registered: shapes"),
        ("models:/shapes/7", "shapes has no version 7; versions: 1"),
        ("models:/shapes@champion", "shapes has no alias 'champion'; aliases: candidate"),
        ("models:/shapes", "is not a model URI; write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("missing", "missing does not exist; give models:/NAME@ALIAS"),
    ],
)
def test_unknown_models_list_what_exists(options, capfd, model, message) -> None:
    code, line = failure([f"--model={model}", *options], capfd)
    assert code == 2
    assert re.search(message, line)


def make_set(folder: Path, classes: list[str], annotations: list[dict[str, object]]) -> str:
    """Convert one grey image with COCO annotations."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "grey").save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(classes)],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    source = ["--source", "coco", "--images", str(folder / "images")]
    source += ["--annotations", str(folder / "labels.json"), "--out", str(folder / "shards")]
    prepare.main(source)
    return str(folder / "shards")


def test_unsuitable_sets_are_refused(options, capfd, tmp_path, scenes) -> None:  # noqa: F811
    box = {"id": 1, "image_id": 1, "bbox": [5, 5, 20, 20], "area": 400}
    one, crowd = ({**box, "category_id": 1, "iscrowd": crowd} for crowd in (0, 1))
    classes = load_manifest(scenes["test"]).classes
    other = make_set(tmp_path / "other", ["cat", "dog"], [one])
    bare = make_set(tmp_path / "bare", classes, [])
    crowded = make_set(tmp_path / "crowded", classes, [crowd])
    model = ["--model=models:/shapes/1", *options]
    for uri, message in (
        (other, "cat, dog"),
        (bare, f"{bare} has no objects, so that there is nothing to find"),
        (crowded, f"{crowded} has no objects but crowd regions, so that there is nothing to find"),
    ):
        code, line = failure([*model, f"--data={uri}"], capfd)
        assert code == 2
        assert message in line


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_output_that_is_not_a_folder_is_refused_at_once(options, capfd, tmp_path, where) -> None:
    file = tmp_path / "file"
    file.write_text("")
    out = file if where == "a file" else file / "out"
    code, line = failure(["--model=models:/shapes/9", f"--out={out}", *options], capfd)
    assert code == 2
    assert line.startswith(f"error: --out {out}: ")


@pytest.mark.parametrize("name", [outputs.PAGE, outputs.SUSPECTS])
def test_file_that_cannot_be_written_is_named(options, capfd, tmp_path, monkeypatch, name) -> None:
    real = outputs.write_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(outputs, "write_durably", full)
    out = tmp_path / "out"
    code, line = failure(["--model=models:/shapes/1", f"--out={out}", *options], capfd)
    assert (code, line) == (2, f"error: cannot write {out / name}: No space left on device")
    assert not (out / name).exists()


def test_figures_say_where_the_time_went(options) -> None:
    seconds = evaluate.main(["--model=models:/shapes/1", *options, "--no-track"])["seconds"]
    assert set(seconds) == {"predict", "match", "score"}
    assert all(value > 0 for value in seconds.values())


def test_registry_that_is_down_is_named_before_the_evaluation(options, capfd) -> None:
    code, line = failure(
        ["--model=models:/shapes/1", *options, "--tracking.uri=http://127.0.0.1:9"], capfd
    )
    assert code == 1
    assert "http://127.0.0.1:9 cannot be reached" in line


@pytest.mark.parametrize("refused", [True, False])
def test_record_that_cannot_be_written_fails_in_one_line(
    options, capfd, monkeypatch, refused
) -> None:
    def fails(*_: object, **__: object) -> None:
        error = OSError("not stored")
        error.response = SimpleNamespace(status_code=413 if refused else 500)  # type: ignore
        raise error

    monkeypatch.setattr(MlflowClient, "log_artifact", fails)
    code, line = failure(["--model=models:/shapes/1", *options], capfd)
    assert (code, line.endswith("not stored")) == (2 if refused else 1, True)
    client = connect(options[0].removeprefix("--tracking.uri="))
    ids = [item.experiment_id for item in client.search_experiments()]
    found = client.search_runs(ids, "tags.`evaluation.model` = 'models:/shapes/1'")
    assert [run.info.status for run in found] == ["FAILED"]
