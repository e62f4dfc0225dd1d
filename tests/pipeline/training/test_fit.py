"""The driver without Ray: one run from the configuration to a registered version."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import prepare, tracking
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.registry import load_detector
from pipeline.tracking import connect
from pipeline.training import fit as fit_module
from pipeline.training.fit import fit
from tests.artifact_server import ArtifactServer
from tests.conftest import ROOT
from tests.ports import free_port


def artifacts(uri: str, run_id: str) -> set[str]:
    client, found, folders = connect(uri), set(), [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            folders.append(item.path) if item.is_dir else found.add(item.path)
    return found


def status(config: Config, name: str) -> tuple[str, str]:
    record = json.loads((Path(str(config.ray.storage)) / name / "run.json").read_text())
    run = connect(str(config.tracking.uri)).get_run(record["run_id"])
    return record["status"], run.info.status


def test_training_that_learned_too_little_is_not_registered(
    small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = {"registry.name": "shapes", "registry.min_ap": 0.99}
    result = fit(small.replace(limit), run="poor")
    assert result.model_uri is None
    assert status(small, "poor") == ("finished", "FINISHED")
    shown = capsys.readouterr().err
    assert "not registered: val/ap" in shown and "is not above registry.min_ap 0.99" in shown
    assert f"jobs.register --run {result.checkpoint} --name shapes" in shown
    unscored = {"data.val": None, "data.test": None, **limit}
    assert fit(small.replace(unscored), run="unscored").model_uri == "models:/shapes/1"


def test_training_ends_in_a_finished_run_and_a_version(small: Config) -> None:
    anchors = {"model.anchor_base": 14.0, "model.anchor_ratios": [1.0, 1.4]}
    config = small.replace({"registry.name": "shapes", **anchors})
    result = fit(config, run="first")
    for trained in ("models:/shapes/1", result.checkpoint):
        spec = load_detector(trained, result.tracking_uri).spec
        assert spec.anchor_shapes == config.model.anchor_shapes
    run = connect(result.tracking_uri).get_run(result.run_id)
    assert status(config, "first") == ("finished", "FINISHED")
    assert result.model_uri == "models:/shapes/1"
    assert run.data.params["assign.name"] == "mutual_guidance"
    assert {"train/loss", "train/loss_cls", "train/lr", "val/ap", "test/ap"} <= set(
        run.data.metrics
    )
    assert {
        "config.yaml",
        "pictures/val.jpg",
        "pictures/test.jpg",
        "curves/test.png",
        "evaluation/test.json",
        "environment/packages.txt",
    } <= artifacts(result.tracking_uri, result.run_id)
    history = connect(result.tracking_uri).get_metric_history(result.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 11))
    assert Path(result.checkpoint).is_dir()
    assert Path(result.checkpoint).name == f"step-{result.best_step:08d}"
    assert result.total_steps == 10
    documented = (ROOT / "docs" / "tracking.md").read_text()
    for name in (*run.data.metrics, *run.data.tags):
        assert f"`{documented_name(name)}`" in documented or name.startswith("mlflow."), name
    wanted = set(re.findall(r"`((?:train|assign)/\w+)`", documented))
    absent = {name for name in wanted - set(run.data.metrics) if "_per_object_" not in name}
    assert not absent


def documented_name(name: str) -> str:
    """Return a metric's or tag's name as the documentation writes it."""
    for pattern, word in (
        (r"^(model/)?(val|test|best)/", "SPLIT/"),
        (r"^system/[^/]+/", "system/NODE/"),
        (r"gpu_\d+", "gpu_N"),
        (r"^history\..*", "history.TIME"),
        (r"^data\.\w+\.", "data.USE."),
    ):
        name = re.sub(pattern, word, name)
    return name


def test_best_checkpoint_is_found_if_not_all_are_evaluated(small: Config) -> None:
    config = small.replace({"train.checkpoint_every": 0.4, "evaluate.every": 1.0})
    config = config.replace({"train.keep_checkpoints": 4})
    result = fit(config, run="one")
    meta = json.loads((Path(result.checkpoint) / "meta.json").read_text())
    assert meta["step"] in (5, 10)
    assert meta["metrics"]["val/ap"] == result.metrics["val/ap"]


def test_no_uri_of_a_service_is_stored_beside_checkpoints(small: Config) -> None:
    config = small.replace({"data.val": None, "train.epochs": 0.4})
    result = fit(config, run="one")
    for path in Path(result.checkpoint).parent.rglob("*.json"):
        assert "mlflow.db" not in path.read_text()
        assert str(config.ray.storage) not in path.read_text()


def test_label_is_put_before_every_progress_line(
    small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small.replace({"data.val": None, "data.test": None, "train.epochs": 0.4})
    fit(config, run="one", label="trial one")
    shown = capsys.readouterr().err.splitlines()
    lines = [line for line in shown if "step" in line or "warning" in line]
    assert len(lines) == 3  # what is trained, that anchors do not fit, and the last step
    assert all(line.startswith("trial one: ") for line in lines)
    assert "% of the objects have no anchor with an IoU of 0.5" in lines[1]


def test_finished_run_is_not_resumed(small: Config) -> None:
    config = small.replace({"train.epochs": 0.4, "data.val": None, "data.test": None})
    fit(config, run="one")
    with pytest.raises(UserError, match=r"run 'one' is finished; choose another --run name"):
        fit(config, run="one")


def test_failed_run_is_recorded_and_resumed(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small.replace({"data.val": None, "registry.name": "shapes"})

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "register_result", fails)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(config, run="one")
    assert status(config, "one") == ("failed", "FAILED")
    first = json.loads((Path(str(config.ray.storage)) / "one" / "run.json").read_text())
    with pytest.raises(UserError, match="--resume never: run 'one' exists"):
        fit(config, run="one", resume="never")
    other = {"assign.sigma": 3.0, "train.batch_size": 2, "data.flip": 0.1}
    with pytest.raises(UserError, match=r"assign\.sigma = 2\.0, now 3\.0") as caught:
        fit(config.replace(other), run="one")
    for part in ("train.batch_size = 4, now 2", "data.flip = 0.5", "may change: data.test, "):
        assert part in str(caught.value)
    config = config.replace({"data.prefetch": 2, "train.keep_checkpoints": 3, "ray.workers": 2})
    result = fit(config, run="one", resume="must")
    assert result.run_id == first["run_id"]
    assert status(config, "one") == ("finished", "FINISHED")
    tags = connect(result.tracking_uri).get_run(result.run_id).data.tags
    history = [text for key, text in sorted(tags.items()) if key.startswith("history.")]
    assert [line.split(":")[0] for line in history] == [
        "workers start after step 0 of 10",
        "FAILED",
        "resumed after failed",
        "workers start after step 10 of 10",
        "FINISHED",
    ]
    assert history[1] == "FAILED: power cut"


def test_training_without_a_store_is_rejected_by_default(small: Config) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    config = small.replace({"tracking.uri": away})
    began = time.monotonic()
    with pytest.raises(OutageError, match="cannot be reached"):
        fit(config, run="one")
    assert time.monotonic() - began < 10
    assert not list(Path(str(config.ray.storage)).glob("one/*"))


def test_run_without_a_store_is_sent_later(
    small: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.ray.storage))
    monkeypatch.setattr("pipeline.tracking.run.CLOSE_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.training.worker.TRACKER_CLOSE_SECONDS", 0.0)
    away = f"http://127.0.0.1:{free_port()}"
    config = small.replace({"tracking.uri": away, "tracking.required": False})
    result = fit(config, run="one")
    assert result.run_id.startswith("offline-")
    assert "jobs.tracking sync" in capsys.readouterr().err
    command = ["sync", "--storage", str(config.ray.storage)]
    with pytest.raises(OutageError, match="cannot be reached"):
        tracking.main(command)
    store = str(small.tracking.uri)
    (sent,) = tracking.main([*command, "--tracking.uri", store])["runs"]
    run = connect(store).get_run(sent["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2.0"
    assert run.inputs.dataset_inputs
    history = connect(store).get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 11))
    assert run.info.start_time <= history[0].timestamp <= run.info.end_time
    assert {"config.yaml", "pictures/val.jpg"} <= artifacts(store, run.info.run_id)
    assert tracking.main([*command, "--tracking.uri", store])["runs"] == []
    assert len(connect(store).search_runs([run.info.experiment_id])) == 1


def test_model_that_is_rejected_is_registered_by_the_same_command_later(small: Config) -> None:
    with ArtifactServer() as server:
        server.limit, server.status["weights.safetensors"] = 10**9, 413
        root = f"http://127.0.0.1:{server.server_port}/root"
        config = small.replace({"tracking.artifacts": root, "registry.name": "shapes"})
        with pytest.raises(UserError, match="nothing was registered: 413 Client Error"):
            fit(config, run="one")
        assert status(config, "one") == ("failed", "FAILED")
        server.status.clear()
        assert fit(config, run="one").model_uri == "models:/shapes/1"
        assert any(path.endswith("weights.safetensors") for path in server.stored)


def test_second_driver_of_a_run_is_rejected(small: Config) -> None:
    config = small.replace({"train.epochs": 0.4, "data.val": None, "data.test": None})
    code = (
        "import sys; from pipeline.training.run_record import RunRecord\n"
        "record = RunRecord(sys.argv[1], 'one'); record.check_storage(); record.hold()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(config.ray.storage)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        with pytest.raises(UserError, match=f"is being trained by process {other.pid} on "):
            fit(config, run="one")
        other.kill()
    assert fit(config, run="one").run == "one"
    with pytest.raises(UserError, match="is finished"):
        fit(config, run="one")


def test_resume_must_needs_an_existing_run(small: Config) -> None:
    with pytest.raises(UserError, match="--resume must: there is no run 'one'"):
        fit(small, run="one", resume="must")


def test_other_classes_of_the_test_set_are_rejected(small: Config, tmp_path: Path) -> None:
    other = tmp_path / "other"
    prepare.main(
        [
            *("--source", "shapes", "--count", "2", "--size", "64", "--out", str(other)),
            *("--classes", "square,circle"),
        ]
    )
    with pytest.raises(UserError, match="square, circle") as caught:
        fit(small.replace({"data.test": str(other)}), run="one")
    assert "triangle" in str(caught.value)
    assert not (Path(str(small.ray.storage)) / "one").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data.train": None}, "data.train is not set"),
        ({"data.train": "/nowhere"}, r"/nowhere: not a shard set \(manifest\.json not found\)"),
        (
            {"ray.enabled": True, "ray.address": "auto", "ray.storage": None},
            "ray.storage is not set",
        ),
        ({"ray.enabled": True, "ray.address": "auto", "tracking.uri": None}, "tracking.uri is not"),
        ({"ray.enabled": True, "ray.workers": 9}, "batch_size 4 is smaller than the 9 workers"),
        ({"ray.enabled": True, "ray.workers": [2, 5]}, "batch_size 4 is smaller than the 5"),
        ({"data.sizes": [576]}, "data.sizes .* and model.image_size 64"),
        ({"tracking.experiment": "x" * 501}, "tracking.experiment: .* at most 500 characters"),
    ],
)
def test_configuration_mistakes_are_rejected_at_once(
    small: Config, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        fit(small.replace(change), run="one")
    assert not (Path(str(small.ray.storage)) / "one").exists()
