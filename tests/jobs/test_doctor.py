"""The command ``doctor`` of the job ``shards``: findings, exit codes, anchors in a recipe."""

import json
import shutil
from pathlib import Path

import pytest

from jobs import prepare, shards
from jobs.cli.common import JobResult
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.reports.doctor.recipe import anchor_lines
from pipeline.safe_yaml import load_yaml
from tests.conftest import ROOT
from tests.nginx import Nginx


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two splits of scenes of 64 px."""
    folder = tmp_path_factory.mktemp("sets")
    for split, seed in (("train", "1"), ("val", "2")):
        shape = ["--source", "shapes", "--count", "30", "--size", "64", "--shard-samples", "12"]
        given = ["--split", split, "--seed", seed, "--out", str(folder / split)]
        prepare.main([*shape, *given])
    return folder


def test_set_without_errors_is_examined(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", str(sets / "train"), "--compare-with", str(sets / "val")]
    result = shards.main([*arguments, "--model.image_size", "64"])
    assert not isinstance(result, JobResult)
    tree = json.loads((sets / "train" / "manifest.json").read_text())
    assert {n: c["objects"] for n, c in result["classes"].items()} == tree["boxes_per_class"]
    assert (result["samples"], result["image_size"]) == (30, 64)
    assert sum(side["objects"] for side in result["sides"].values()) == tree["boxes"]
    text = capsys.readouterr().out
    assert "input 64 x 64 px (stretch)" in text
    assert "0 errors" in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    json.dumps(result)


def test_errors_give_exit_code_1(sets: Path) -> None:
    result = shards.main(["doctor", str(sets / "val"), "--compare-with", str(sets / "val")])
    assert isinstance(result, JobResult) and result.exit_code == 1
    first = result["findings"][0]
    assert (first["severity"], first["check"]) == ("error", "same_content")
    assert result["errors"] == 1


def test_images_of_both_splits_are_an_error(sets: Path, tmp_path: Path) -> None:
    arguments = ["--source", "shapes", "--count", "25", "--size", "64", "--split", "train"]
    prepare.main([*arguments, "--seed", "1", "--out", str(tmp_path / "part")])
    result = shards.main(["doctor", str(sets / "train"), "--compare-with", str(tmp_path / "part")])
    (finding,) = (one for one in result["findings"] if one["check"] == "same_annotations")
    assert finding["severity"] == "error"
    assert int(finding["text"].split()[-3]) >= 15


def test_unreadable_sample_is_named(sets: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sets / "train", tmp_path / "cut"))
    with (folder / "shard-000002.tar").open("r+b") as file:
        file.truncate(700)
    result = shards.main(["doctor", str(folder)])
    (finding,) = (one for one in result["findings"] if one["check"] == "unreadable_samples")
    assert "shard-000002.tar sample" in finding["details"][0]
    assert result["samples"] + result["unreadable"] == 30


def test_anchors_are_set_in_the_recipe_once(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# mine\nmodel:\n  image_size: 64  # small\ntrain:\n  lr: 0.1\n")
    command = ["doctor", str(sets / "train"), "--config", str(recipe)]
    before = shards.main(command)
    assert before["fitted_anchors"] and "recipe" not in before
    result = shards.main([*command, "--anchors", "fit"])
    assert result["recipe"] == str(recipe)
    text = recipe.read_text()
    assert text.startswith("# mine\nmodel:\n  anchor_base: ")
    assert text.endswith("  image_size: 64  # small\ntrain:\n  lr: 0.1\n")
    model = Config.from_dict(load_yaml(text)).model
    assert model.anchor_base == result["fitted_anchors"]["anchor_base"]
    again = shards.main([*command, "--anchors", "fit"])
    assert again["recipe"] is None and recipe.read_text() == text
    fitted = result["fitted_anchors"]["share_without_anchor"]
    assert again["anchors"]["share_without_anchor"] == fitted
    assert "nothing was changed" in capsys.readouterr().out
    recipe.write_text("model: {image_size: 64}\n")
    assert shards.main([*command[:2], f"--config={recipe}", "--anchors", "fit"])["recipe"]


@pytest.mark.parametrize("config", [[], ["--config", "shapes"]])
def test_anchors_are_printed_without_a_recipe_of_the_user(
    config: list[str], sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    included = (ROOT / "configs" / "shapes.yaml").read_text()
    arguments = ["--anchors", "fit", "--model.image_size", "64", *config]
    result = shards.main(["doctor", str(sets / "train"), *arguments])
    assert result["recipe"] is None
    printed = capsys.readouterr().out
    lines = printed[printed.index("\nmodel:\n") :]
    section = load_yaml(lines)["model"]
    assert anchor_lines(Config.from_dict({"model": section}).model.anchor_shapes) == [
        line for line in lines.splitlines() if line
    ]
    assert section["anchor_base"] == result["fitted_anchors"]["anchor_base"]
    assert (ROOT / "configs" / "shapes.yaml").read_text() == included


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/nowhere"], "not a shard set"),
        ([], "arguments are required: URI"),
        (["x", "--anchors", "best"], "invalid choice: 'best'"),
        (["x", "--model.anchor_base", "-1"], "the base is -1; it must be from 1 to 1024"),
        (["x", "--config", "nope.yaml"], "No such file or included recipe"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        shards.main(["doctor", *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_remote_set_is_examined_as_a_local_one(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Nginx(Path(shutil.copytree(sets / "train", tmp_path / "served")), tmp_path / "nginx")
    server.start()
    try:
        remote = shards.main(["doctor", server.uri])
    finally:
        server.stop()
    assert {**remote, "uri": ""} == {**shards.main(["doctor", str(sets / "train")]), "uri": ""}
