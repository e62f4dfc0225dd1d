"""Test the COCO metrics: pycocotools gives the same bits."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics import DetectionMetrics, MatchTable, coco_metrics, match_images
from pipeline.metrics.coco import METRIC_NAMES
from tests.pipeline.metrics.scenes import Scene, detections, objects, random_scenes, table

BOX = (10.0, 10.0, 60.0, 60.0)
OTHER = (80.0, 80.0, 99.0, 99.0)


class Reference(COCOeval):
    """Ignores difficult objects, without treating them as crowds."""

    def _prepare(self) -> None:
        super()._prepare()
        for items in self._gts.values():
            for item in items:
                item["ignore"] = item["ignore"] or item["difficult"]


def reference(scenes: Sequence[Scene], classes: int) -> Reference:
    images, annotations, rows = [], [], []
    for number, (_, truth, found) in enumerate(scenes, start=1):
        images.append({"id": number, "width": 200, "height": 200})
        for index in range(len(truth.labels)):
            x1, y1, x2, y2 = truth.boxes[index].tolist()
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(truth.labels[index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(truth.areas[index]),
                "iscrowd": int(truth.crowd[index]),
                "difficult": int(truth.difficult[index]),
            }
            annotations.append(annotation)
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        columns = [found.boxes[:, :2], sides, found.scores, found.labels + 1]
        rows.append(np.column_stack([np.full(len(found.labels), number), *columns]))
    truth = COCO()
    categories = [{"id": number + 1, "name": str(number)} for number in range(classes)]
    truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        all_rows = np.concatenate(rows).astype(np.float64)
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        evaluation = Reference(truth, truth.loadRes(all_rows) if len(all_rows) else found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def metrics(*images) -> dict[str, float]:
    return coco_metrics(table(*images), ["a", "b"]).metrics


CASES = {
    "random": {"images": 30, "classes": 3},
    "equal scores": {"images": 30, "classes": 3, "scores": 4},
    "crowds and difficult objects": {"images": 30, "classes": 3, "crowd": 0.3, "difficult": 0.2},
    "more than 100 detections": {"images": 6, "classes": 1, "max_detections": 250, "scores": 50},
    "many objects": {"images": 10, "classes": 2, "max_objects": 60, "max_detections": 200},
    "many classes": {"images": 20, "classes": 20},
    "no objects": {"images": 5, "classes": 2, "max_objects": 0},
    "no detections": {"images": 5, "classes": 2, "max_detections": 0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_are_those_of_pycocotools_bit_for_bit(case: str, seed: int) -> None:
    scenes = random_scenes(seed, **CASES[case])
    classes = CASES[case]["classes"]
    expected = reference(scenes, classes)
    result = coco_metrics(match_images(scenes), [str(number) for number in range(classes)])
    pairs = zip(METRIC_NAMES, expected.stats.tolist(), strict=True)
    assert result.metrics == {name: value for name, value in pairs if value >= 0}
    precision = expected.eval["precision"][:, :, :, 0, 2]  # (10,101,C)
    assert (result.precision == precision[0]).all()
    for number in range(classes):
        if (precision[:, :, number] >= 0).any():
            ap = {"ap": precision[:, :, number].mean(), "ap50": precision[0, :, number].mean()}
            assert result.per_class[str(number)] == ap


def test_tables_of_ranks_give_the_metrics_of_one() -> None:
    scenes = random_scenes(3, 40, 3, crowd=0.2, scores=5)
    classes = ["a", "b", "c"]
    parts = [match_images(scenes[start::4]) for start in (2, 0, 3, 1)]
    joined = MatchTable.concatenate(parts).sorted_by_image_id()
    whole = match_images(scenes)
    for name in whole.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), name)
    assert equal(coco_metrics(joined, classes), coco_metrics(whole, classes))


def equal(one: DetectionMetrics, other: DetectionMetrics) -> bool:
    same = one.metrics == other.metrics and one.per_class == other.per_class
    return same and bool((one.precision == other.precision).all())


def test_no_images_give_no_metrics() -> None:
    result = coco_metrics(match_images([]), ["a"])
    assert (result.metrics, result.per_class) == ({}, {})


def test_false_positive_with_a_higher_score_halves_precision() -> None:
    found = detections([OTHER, BOX], [0.9, 0.8], [0, 0])
    assert metrics((objects([BOX], [0]), found))["ap50"] == pytest.approx(0.5)


def test_false_positive_on_an_image_without_objects_counts() -> None:
    images = (
        (objects([BOX], [0]), detections([BOX], [0.5], [0])),
        (objects(), detections([BOX], [0.9], [0])),
    )
    assert metrics(*images)["ap50"] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_ignored_objects_count_neither_as_found_nor_as_missed(kind: str) -> None:
    truth = objects([BOX, OTHER], [0, 0], **{kind: [False, True]})
    for found in (
        detections([BOX], [0.9], [0]),
        detections([OTHER, BOX], [0.95, 0.9], [0, 0]),
    ):
        assert metrics((truth, found))["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "ap50"), [("crowd", 1.0), ("difficult", 0.5)])
def test_crowd_absorbs_any_number_of_detections_and_a_difficult_object_one(
    kind: str, ap50: float
) -> None:
    truth = objects([BOX, OTHER], [0, 0], **{kind: [False, True]})
    found = detections([OTHER, OTHER, BOX], [0.95, 0.94, 0.9], [0, 0, 0])
    assert metrics((truth, found))["ap50"] == pytest.approx(ap50)
