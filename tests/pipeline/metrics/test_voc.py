"""Test VOC's average precision against golden values and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.metrics import voc_average_precision, voc_metrics, voc_per_class
from tests.pipeline.metrics.scenes import detections, objects, table

BOX = (10.0, 10.0, 60.0, 60.0)
OTHER = (80.0, 80.0, 99.0, 99.0)


def test_golden_values(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "voc_ap.json").read_text())
    for name, expected in golden["expected_ap"].items():
        metric, rest = name.split("@")
        iou, label = rest.split("/")
        found = voc_average_precision(
            golden["ground_truth"], golden["detections"], golden["classes"], float(iou), metric
        )
        assert found[label] == pytest.approx(expected, abs=1e-9), name


def test_several_thresholds_are_averaged(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "voc_ap.json").read_text())
    found = voc_average_precision(
        golden["ground_truth"], golden["detections"], golden["classes"], [0.5, 0.75], "area"
    )
    for label, value in found.items():
        each = [golden["expected_ap"][f"area@{iou}/{label}"] for iou in (0.5, 0.75)]
        assert value == pytest.approx(np.mean(each), abs=1e-9)


def test_second_detection_of_an_object_is_negative() -> None:
    # Positive, negative, positive: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3.
    found = detections([BOX, BOX, OTHER], [0.9, 0.8, 0.7], [0, 0, 0])
    both = table((objects([BOX, OTHER], [0, 0]), found))
    assert voc_per_class(both, ["a"], [0.5], "area")["a"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    # Six of the eleven recalls (0 to 0.5) are at precision 1, five at 2/3.
    eleven = voc_per_class(both, ["a"], [0.5], "voc07")["a"]
    assert eleven == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_threshold_itself_does_not_match() -> None:
    # IoU 0.5 exactly: VOC requires more.
    half = (10.0, 10.0, 60.0, 35.0)
    found = table((objects([BOX], [0]), detections([half], [0.9], [0])))
    assert voc_per_class(found, ["a"], [0.5], "area") == {"a": 0.0}
    assert voc_per_class(found, ["a"], [0.49], "area") == {"a": 1.0}


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_ignored_objects_absorb_any_number_of_detections(kind: str) -> None:
    truth = objects([BOX, OTHER], [0, 0], **{kind: [False, True]})
    found = detections([OTHER, OTHER, BOX], [0.95, 0.94, 0.9], [0, 0, 0])
    assert voc_metrics(table((truth, found)), ["a"], "area")["ap"] == pytest.approx(1.0)


def test_classes_without_objects_have_no_score() -> None:
    found = table((objects([BOX], [0]), detections([BOX, OTHER], [0.9, 0.8], [0, 1])))
    assert voc_per_class(found, ["a", "b"], [0.5], "area") == {"a": 1.0}
    empty = table((objects(), detections([BOX], [0.9], [0])))
    assert voc_metrics(empty, ["a"], "voc07") == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": "y"}, "unknown image 'y'"),
        ({"name": "cow"}, "class 'cow' is not one of a"),
    ],
)
def test_wrong_input_is_named(change: dict, expected: str) -> None:
    truth = [{"image": "x", "objects": [{"name": "a", "bbox": [1, 1, 9, 9], "difficult": 0}]}]
    found = [{"image": "x", "name": "a", "score": 0.5, "bbox": [1, 1, 9, 9], **change}]
    with pytest.raises(ValueError, match=expected):
        voc_average_precision(truth, found, ["a"], 0.5, "area")
    with pytest.raises(ValueError, match="occurs twice"):
        voc_average_precision(truth * 2, [], ["a"], 0.5, "area")
    with pytest.raises(ValueError, match="choose voc07 or area"):
        voc_average_precision(truth, [], ["a"], 0.5, "other")
