"""The job ``shards``: verify, describe and preview a shard set."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import prepare, shards
from pipeline.data.transforms.resize import FILL_COLOUR
from pipeline.errors import UserError
from pipeline.reports.pictures import class_color


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    arguments = ["--source", "shapes", "--count", "7", "--size", "64", "--shard-samples", "3"]
    prepare.main([*arguments, "--out", str(tmp_path / "scenes")])
    return tmp_path / "scenes"


def test_verify_reports_a_valid_set(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = shards.main(["verify", str(scenes)])
    assert (result["samples"], result["shards"]) == (7, 3)
    assert "valid: 7 samples in 3 shards" in capsys.readouterr().out


def test_verify_lists_every_fault(scenes: Path) -> None:
    with (scenes / "shard-000001.tar").open("r+b") as file:
        file.truncate(700)
    (scenes / "shard-000002.tar").unlink()
    with pytest.raises(UserError) as caught:
        shards.main(["verify", str(scenes)])
    text = str(caught.value)
    assert "shard-000001.tar: truncated at byte 700, inside member '000000003.jpg'" in text
    assert "shard-000002.tar: missing" in text and "its counts were not compared" in text


@pytest.mark.parametrize("arguments", [[], ["verify"], ["repair", "x"]])
def test_wrong_command_raises_one_line(arguments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        shards.main(arguments)
    assert "\n" not in str(caught.value)


def test_describe_counts_boxes_and_images(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = shards.main(["describe", str(scenes)])
    text = capsys.readouterr().out
    tree = json.loads((scenes / "manifest.json").read_text())
    assert result["boxes_per_class"] == tree["boxes_per_class"]
    assert sum(result["box_sides"].values()) == tree["boxes"]
    assert "3 shards" in text and "problems: none" in text and "width 64 to 64" in text
    for name, count in tree["boxes_per_class"].items():
        assert re.search(rf"^{name} +{count} ", text, flags=re.M)


def test_page_is_self_contained_and_escapes_names(scenes: Path, tmp_path: Path) -> None:
    tree = json.loads((scenes / "manifest.json").read_text())
    evil = "<script>alert(1)</script>"
    tree["classes"][0] = evil
    tree["problem_counts"] = {"repaired": 1}
    problem = {"file": evil, "kind": "repaired", "reason": "r"}
    (scenes / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (scenes / "manifest.json").write_text(json.dumps(tree))
    page = tmp_path / "page.html"
    shards.main(["describe", str(scenes), "--html", str(page)])
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg;base64,/9j/') == 7 and evil not in text
    assert not re.search(r"(src|href)=[\"'](?!data:)", text) and "<script" not in text


def test_describe_lists_unreadable_samples(scenes: Path) -> None:
    with (scenes / "shard-000001.tar").open("r+b") as file:
        file.truncate(700)
    problems = shards.main(["describe", str(scenes)])["problems"]
    assert len(problems) == 3
    assert all(line.startswith("unreadable: shard-000001.tar sample") for line in problems)


def test_unwritable_page_raises_one_line(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--html .*none/page.html: No such file"):
        shards.main(["describe", str(scenes), "--html", str(tmp_path / "none/page.html")])


def test_preview_shows_augmented_images_of_an_epoch(scenes: Path, tmp_path: Path) -> None:
    small = ["--images", "4", "--model.image_size", "64", "--data.photometric", "0.5"]
    arguments = ["preview", str(scenes), *small, "--data.zoom_out", "1"]
    sheets = []
    for name, epoch in (("a.png", "0"), ("b.png", "0"), ("c.png", "1")):
        out = tmp_path / name
        result = shards.main([*arguments, "--out", str(out), "--epoch", epoch])
        assert result["problems"] == [] and result["out"] == str(out)
        sheets.append(np.asarray(Image.open(out)))
    assert sheets[0].shape == (2 * (64 + 24), 2 * (64 + 6), 3)
    assert np.array_equal(sheets[0], sheets[1]) and not np.array_equal(sheets[0], sheets[2])
    pixels = sheets[0].reshape(-1, 3)
    assert (pixels == FILL_COLOUR).all(1).any()  # images are zoomed out ...
    colours = {class_color(label) for label in range(3)}
    assert any((pixels == colour).all(1).any() for colour in colours)  # ... and have boxes


def test_preview_shows_mosaics_until_the_training_closes_them(scenes: Path, tmp_path: Path) -> None:
    arguments = ["preview", str(scenes), "--images", "4", "--model.image_size", "64"]
    closing = ["--data.mosaic", "1", "--train.epochs", "4", "--data.close_mosaic", "0.5"]
    sheets = {}
    for name, fields, epoch in (
        ("early", closing, "1"),
        ("late", closing, "2"),
        ("mosaic", ["--data.mosaic", "1"], "1"),
        ("plain", [], "2"),
    ):
        out = tmp_path / f"{name}.png"
        shards.main([*arguments, *fields, "--epoch", epoch, "--out", str(out)])
        sheets[name] = np.asarray(Image.open(out))
    assert np.array_equal(sheets["early"], sheets["mosaic"])
    assert np.array_equal(sheets["late"], sheets["plain"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.txt"], r"--out x\.txt: name a \.png or \.jpg file"),
        (["--out", "nowhere/x.png"], "--out nowhere/x.png: No such file"),
        (["--out", "x.png", "--data.crop", "2"], "data.crop: got"),
        ([], "--out"),
    ],
)
def test_wrong_preview_options_raise_one_line(
    scenes: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        shards.main(["preview", str(scenes), *arguments])
    assert "\n" not in str(caught.value)
