"""Test the COCO metrics on cases with known results."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import Sample
from pipeline.evaluation.coco import ImageDetections, evaluate_coco

CLASSES = ["a", "b"]
BOX = (10.0, 10.0, 60.0, 60.0)
OTHER = (80.0, 80.0, 99.0, 99.0)


def sample(name: str = "0", boxes=(BOX,), labels=(0,), difficult=None, crowd=None) -> Sample:
    count = len(boxes)
    return Sample.make(
        image_id=name,
        file_name=f"{name}.jpg",
        width=100,
        height=100,
        boxes=list(boxes),
        labels=list(labels),
        difficult=list(difficult or [False] * count),
        crowd=list(crowd or [False] * count),
        area=[(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes],
    )


def detections(boxes=(), scores=(), labels=()) -> ImageDetections:
    return ImageDetections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def test_perfect_detections_score_one() -> None:
    result = evaluate_coco([(sample(), detections([BOX], [0.9], [0]))], CLASSES)
    assert result.metrics["ap"] == pytest.approx(1.0)
    assert result.per_class == {"a": {"ap": pytest.approx(1.0), "ap50": pytest.approx(1.0)}}
    assert result.precision.shape == (101, 2)


def test_no_detections_score_zero() -> None:
    result = evaluate_coco([(sample(), detections())], CLASSES)
    assert result.metrics["ap"] == 0.0


def test_wrong_class_scores_zero() -> None:
    result = evaluate_coco([(sample(), detections([BOX], [0.9], [1]))], CLASSES)
    assert result.metrics["ap"] == 0.0


def test_image_without_objects_has_no_metrics() -> None:
    result = evaluate_coco([(sample(boxes=(), labels=()), detections())], CLASSES)
    assert "ap" not in result.metrics
    assert result.per_class == {}


def test_no_images_give_no_metrics() -> None:
    assert evaluate_coco([], CLASSES).metrics == {}


def test_false_positive_with_a_higher_score_halves_precision() -> None:
    found = detections([OTHER, BOX], [0.9, 0.8], [0, 0])
    assert evaluate_coco([(sample(), found)], CLASSES).metrics["ap50"] == pytest.approx(0.5)


def test_image_without_objects_counts_false_positives() -> None:
    scored = [
        (sample("0"), detections([BOX], [0.5], [0])),
        (sample("1", boxes=(), labels=()), detections([BOX], [0.9], [0])),
    ]
    assert evaluate_coco(scored, CLASSES).metrics["ap50"] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_ignored_objects_count_neither_as_found_nor_as_missed(kind: str) -> None:
    truth = sample(boxes=(BOX, OTHER), labels=(0, 0), **{kind: [False, True]})
    for found in (
        detections([BOX], [0.9], [0]),
        detections([OTHER, BOX], [0.95, 0.9], [0, 0]),
    ):
        assert evaluate_coco([(truth, found)], CLASSES).metrics["ap"] == pytest.approx(1.0)


def test_crowd_absorbs_any_number_of_detections_and_a_difficult_object_one() -> None:
    def ap50(kind: str) -> float:
        truth = sample(boxes=(BOX, OTHER), labels=(0, 0), **{kind: [False, True]})
        found = detections([OTHER, OTHER, BOX], [0.95, 0.94, 0.9], [0, 0, 0])
        return evaluate_coco([(truth, found)], CLASSES).metrics["ap50"]

    assert ap50("crowd") == pytest.approx(1.0)
    assert ap50("difficult") == pytest.approx(0.5)


def test_equals_pycocotools_on_real_annotations(shared: Path) -> None:
    """Compare noisy ground truth as detections with pycocotools on COCO's own JSON."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    file = shared / "data" / "mini" / "annotations" / "instances_all.json"
    truth = COCO(str(file))
    categories = sorted(truth.cats)
    rng = np.random.default_rng(0)
    scored, rows = [], []
    for image in truth.dataset["images"]:
        objects = truth.imgToAnns[image["id"]]
        boxes = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)
        noisy = (boxes + rng.normal(0, 3, boxes.shape)).clip(0.5)
        scores = rng.random(len(objects)).astype(np.float32)
        labels = np.array([categories.index(o["category_id"]) for o in objects], np.int64)
        corners = np.concatenate([noisy[:, :2], noisy[:, :2] + noisy[:, 2:]], 1)
        found = ImageDetections(corners.astype(np.float32), scores, labels)
        x1y1 = found.boxes[:, :2]
        kept = np.concatenate([x1y1, found.boxes[:, 2:] - x1y1], 1)
        for box, score, label in zip(kept, scores, labels, strict=True):
            rows.append([image["id"], *box, score, categories[label]])
        scored.append((_sample_of(image, objects, labels), found))
    expected = COCOeval(truth, truth.loadRes(np.array(rows, np.float64)), "bbox")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    result = evaluate_coco(scored, [truth.cats[c]["name"] for c in categories])
    got = [result.metrics["ap"], result.metrics["ap50"], result.metrics["ap75"]]
    assert got == pytest.approx(expected.stats[:3].tolist(), abs=1e-9)
    assert json.dumps(result.metrics)


def _sample_of(image: dict, objects: list[dict], labels: np.ndarray) -> Sample:
    boxes = [
        (
            max(0.0, o["bbox"][0]),
            max(0.0, o["bbox"][1]),
            min(image["width"], o["bbox"][0] + o["bbox"][2]),
            min(image["height"], o["bbox"][1] + o["bbox"][3]),
        )
        for o in objects
    ]
    return Sample.make(
        image_id=str(image["id"]),
        file_name=image["file_name"],
        width=image["width"],
        height=image["height"],
        boxes=boxes,
        labels=labels.tolist(),
        difficult=[False] * len(objects),
        crowd=[bool(o["iscrowd"]) for o in objects],
        area=[o["area"] for o in objects],
    )
