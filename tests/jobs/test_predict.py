import json

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import predict
from model import build_detector
from pipeline.config import Config, DetectorSpec
from pipeline.errors import UserError
from pipeline.registry import BundleContent, register
from pipeline.tracking import connect, create_run
from tests.stores import new_store

CLASSES = ["circle", "square"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = new_store(tmp_path_factory.mktemp("registry"))
    config = Config.from_dict(
        {"evaluate": {"max_detections": 5}, "registry": {"score_threshold": 0}}
    )
    torch.manual_seed(0)
    detector = build_detector(num_classes=2, image_size=64)
    register(
        uri,
        create_run(uri, config, "run"),
        BundleContent(
            name="shapes",
            weights=detector.state_dict(),
            spec=DetectorSpec(**detector.spec),
            classes=CLASSES,
            config=config,
            metrics={},
        ),
    )
    connect(uri).set_registered_model_alias("shapes", "champion", "1")
    return uri


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    Image.fromarray(noise).save(folder / "more" / "b.png")
    Image.fromarray(noise).save(folder / "c.webp")
    (folder / "notes.txt").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    return folder


def run(uri, images, out, *options):
    return predict.main(
        [
            *("--model", "models:/shapes@champion", "--images", str(images), "--out", str(out)),
            *("--tracking.uri", uri, *options),
        ]
    )


def test_predict_writes_boxes_and_pictures_of_all_images(uri, images, tmp_path, capsys):
    out = tmp_path / "out"
    answer = run(uri, images, out)
    assert (answer["images"], answer["detections"]) == (3, 15)
    assert (answer["skipped"], answer["other_files"]) == (["cut.jpg"], 1)
    shown = capsys.readouterr().err
    assert "skipped cut.jpg: damaged JPEG" in shown and "notes.txt" not in shown
    assert "in 3 images, 1 image skipped, 1 other file" in shown

    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    (damaged,) = [line for line in lines if "error" in line]
    assert damaged.pop("error").startswith("damaged JPEG")
    assert damaged == {"file": "cut.jpg", "width": None, "height": None, "detections": []}
    lines.remove(damaged)
    assert [line.get("picture") for line in lines] == [None, "c.webp.jpg", None]
    assert [(line["file"], line["width"], line["height"]) for line in lines] == [
        ("a.jpg", 60, 40),
        ("c.webp", 60, 40),
        ("more/b.png", 60, 40),
    ]
    for detection in lines[0]["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= 60
        assert 0 <= y1 < y2 <= 40
        assert detection["class_name"] == CLASSES[detection["label"]]
    scores = [detection["score"] for detection in lines[0]["detections"]]
    assert scores == sorted(scores, reverse=True)
    pictures = sorted(p.relative_to(out).as_posix() for p in out.glob("pictures/**/*.*"))
    assert pictures == ["pictures/a.jpg", "pictures/c.webp.jpg", "pictures/more/b.png"]
    drawn = np.asarray(Image.open(out / "pictures" / "more" / "b.png"))
    assert drawn.shape == (40, 60, 3)
    assert (drawn != np.asarray(Image.open(images / "more" / "b.png"))).any()


def test_many_images_that_cannot_be_read_are_not_all_printed(uri, images, tmp_path, capsys):
    for number in range(30):
        (images / f"broken-{number}.jpg").write_text("no image")
        (images / f"note-{number}.txt").write_text("no image")
    answer = run(uri, images, tmp_path / "out", "--no-pictures")
    assert len(answer["skipped"]) == 31 and answer["other_files"] == 31
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("skipped ") for line in lines) == 21
    assert any("31 images skipped, 31 other files" in line for line in lines)
    errors = [line for line in (tmp_path / "out/detections.jsonl").open() if "error" in line]
    assert len(errors) == 31


def test_one_image_or_a_list_of_images_is_read(uri, images, tmp_path):
    out = tmp_path / "out"
    assert run(uri, images / "a.jpg", out)["images"] == 1
    assert (out / "pictures/a.jpg").is_file()
    listed = images / "list.txt"
    listed.write_text(f"\ufeffa.jpg\r\n{images}/more/b.png\nmore/../a.jpg\ngone.jpg\n")
    answer = run(uri, listed, tmp_path / "listed")
    assert (answer["images"], answer["skipped"]) == (3, ["gone.jpg"])
    lines = [json.loads(line) for line in (tmp_path / "listed/detections.jsonl").open()]
    assert "not found in" in lines[3]["error"]
    names = [line.get("picture", line["file"]) for line in lines[:3]]
    assert names[0] == "a.jpg" and names[2] == "a-2.jpg"
    assert all((tmp_path / "listed/pictures" / name).is_file() for name in names)
    assert len(list(tmp_path.glob("listed/pictures/**/*.*"))) == 3


def test_result_does_not_depend_on_batching(uri, images, tmp_path, monkeypatch):
    run(uri, images, tmp_path / "together")
    monkeypatch.setattr("pipeline.registry.predict._PIXELS_PER_BATCH", 1)
    run(uri, images, tmp_path / "alone", "--no-pictures")
    assert not (tmp_path / "alone" / "pictures").exists()
    together, alone = (
        [json.loads(line) for line in (tmp_path / name / "detections.jsonl").open()]
        for name in ("together", "alone")
    )
    assert [line["file"] for line in together] == [line["file"] for line in alone]
    for one, other in zip(together, alone, strict=True):
        boxes = [[d["box"] for d in line["detections"]] for line in (one, other)]
        np.testing.assert_allclose(*boxes, atol=0.02)


def test_threshold_drops_boxes_and_out_may_be_inside_images(uri, images):
    out = images / "out"
    assert run(uri, images, out, "--score-threshold", "1.0")["detections"] == 0
    assert run(uri, images, out)["images"] == 3


def test_user_errors_name_the_cause(uri, images, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty is empty"):
        run(uri, empty, tmp_path / "out")
    with pytest.raises(UserError, match="absent: no such file or directory"):
        run(uri, tmp_path / "absent", tmp_path / "out")
    (empty / "notes.txt").write_text("text")
    with pytest.raises(UserError, match="none of its 1 file is an image"):
        run(uri, empty, tmp_path / "out")
    with pytest.raises(UserError, match="between 0 and 1"):
        run(uri, images, tmp_path / "out", "--score-threshold", "30")
    with pytest.raises(UserError, match="'missing' does not exist"):
        run(uri, images, tmp_path / "out", "--model", "models:/missing@champion")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        run(uri, images, tmp_path / "file" / "out")
