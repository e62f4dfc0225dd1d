"""From a folder to a registered model with one command, which may be repeated."""

from pathlib import Path

import pytest

from jobs import start
from pipeline.config import Config, read_recipe
from pipeline.errors import UserError
from pipeline.start.find import OPTIONS
from tests.jobs.commands import results, run
from tests.pipeline.start.conftest import make_coco, make_voc


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such folder or archive"),
        (
            ["s3://bucket/data"],
            "s3://bucket/data: DIR is a local folder, tar or zip; .*train --data.train reads",
        ),
        (["empty"], "is empty"),
        (["empty", "--data.train", "x"], "data.train is made from DIR"),
        (["empty", "--format", "csv"], "invalid choice"),
        (["empty", "--model.image_size", "100"], "not divisible by 64"),
        (["empty", "--yes", "--ray.address", "10.0.0.1:6379"], "ray.storage is not set; on a clus"),
    ],
)
def test_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        start.main(words)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_options_that_errors_may_name_exist() -> None:
    assert start._parser()._option_string_actions.keys() >= set(OPTIONS)


@pytest.mark.parametrize(
    ("here", "given", "out"),
    [
        ("", None, "pets-detector"),
        ("pets", None, "pets-detector"),  # beside the data, not in it
        ("pets/Annotations", None, "pets-detector"),
        ("", "other", "other"),
    ],
)
def test_results_are_outside_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, given: str | None, out: str
) -> None:
    data = tmp_path / "pets"
    (data / "Annotations").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    assert start._output(data, Path(given) if given else None, "pets") == tmp_path / out
    with pytest.raises(UserError, match="is in the data"):
        start._output(data, data / "out", "pets")


def test_options_against_the_own_recipe_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_voc(tmp_path / "pets", {"train": range(3), "val": (3,)}, images=4)
    (tmp_path / "pets-detector").mkdir()
    (tmp_path / "pets-detector" / "recipe.yaml").write_text("model: {image_size: 128}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"has model\.image_size 128, not 64; change it there"):
        start.main(["pets", "--model.image_size", "64"])
    text = (tmp_path / "pets-detector" / "recipe.yaml").read_text()
    assert text == "model: {image_size: 128}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.train is missing; add it, or delete the recipe"),
        ("model: {image_size: 128}\n", "data.train is missing; add it, or delete the recipe"),
        (
            "model: {image_size: 100}\n",
            "model.image_size: 100 is not divisible by 64; the nearest are 64 and 128; correct it, "
            "or delete it to have it proposed again",
        ),
        (
            "text\n",
            "expected sections such as 'train:', got 'text'; correct it, or delete it to have it "
            "proposed again",
        ),
    ],
)
def test_fault_of_the_own_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    make_voc(tmp_path / "pets", {"train": range(3), "val": (3,)}, images=4)
    (tmp_path / "pets-detector").mkdir()
    recipe = tmp_path / "pets-detector" / "recipe.yaml"
    recipe.write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        start.main(["pets"])
    assert str(error.value) == f"{recipe}: {message}"
    assert not (recipe.parent / "shards").exists()  # read before the data are converted


def test_data_of_the_same_name_do_not_share_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("x", "y"):
        make_coco(tmp_path / place / "data", {"train": range(3), "val": (3,)})
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr("pipeline.start.facts.set_facts", stop)  # after the conversion
    with pytest.raises(UserError, match="stopped"):
        start.main(["x/data"])
    with pytest.raises(UserError, match=f"data-detector is of {tmp_path}/x/data; name another"):
        start.main(["y/data"])


def test_own_recipe_has_the_given_path_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_voc(tmp_path / "pets", {"train": range(3), "val": (3,)}, images=4)
    (tmp_path / "pets-detector").mkdir()
    recipe = f"data: {{train: t, val: v}}\nmodel: {{init: {tmp_path}/own.pth}}\n"
    (tmp_path / "pets-detector" / "recipe.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.start.find.find_data", stop)  # after the recipe
    with pytest.raises(UserError, match="stopped"):
        start.main(["pets", "--model.init", "own.pth"])


def test_own_recipe_does_not_train_on_a_cluster_in_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pets-detector"
    make_voc(tmp_path / "pets", {"train": range(3), "val": (3,)}, images=4)
    out.mkdir()
    (out / "recipe.yaml").write_text(
        f"data: {{train: t, val: v}}\nray: {{address: 10.0.0.1, storage: {out}/runs}}\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ray.storage is not set; on a cluster give a folder"):
        start.main(["pets", "--yes"])


def stop(*args: object) -> None:
    raise UserError("stopped")


@pytest.mark.integration
def test_start_trains_evaluates_and_registers_once(tmp_path: Path) -> None:
    make_voc(tmp_path / "pets", {"train": range(10), "test": (10, 11)}, images=12)
    words = ["pets", "--yes", "--model.backbone", "slim", "--model.image_size", "64"]
    words += ["--train.epochs", "2", "--registry.min_ap", "null"]
    first = results(run(tmp_path, "start", *words))

    assert first["samples"] == {"train": 8, "val": 2, "test": 2}
    assert first["seconds"]["step"] > 0
    assert first["trained"]["model_uri"] == "models:/pets-detector/1"
    assert first["trained"]["total_steps"] == 2
    assert {"val/ap", "test/ap"} <= first["trained"]["metrics"].keys()
    assert Path(first["evaluated"]["files"]["page"]).is_file()
    recipe = Path(first["recipe"])
    assert Config.from_dict(read_recipe(recipe)).model.image_size == 64

    recipe.write_text(recipe.read_text() + "# mine\n")
    again = results(run(tmp_path, "start", *words))
    assert again["own_recipe"]
    assert again["trained"] == first["trained"]
    assert again["evaluated"] == first["evaluated"]
    assert recipe.read_text().endswith("# mine\n")
