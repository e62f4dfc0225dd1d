"""Test the error breakdown on images that have one kind of error each."""

import pytest

from pipeline.metrics import match_images
from pipeline.metrics.coco import coco_metrics
from pipeline.metrics.errors import KINDS, detection_errors, error_breakdown, missed_objects
from tests.pipeline.metrics.scenes import detections, objects, random_scenes, table

BOX = (10.0, 10.0, 60.0, 60.0)
SHIFTED = (30.0, 10.0, 80.0, 60.0)  # IoU 3/7 with BOX
OTHER = (100.0, 100.0, 150.0, 150.0)
AWAY = (160.0, 10.0, 190.0, 40.0)
BOTH_OBJECTS = objects([BOX, OTHER], [0, 0])
SECOND_CLASS = objects([BOX, OTHER], [0, 1])

# Each case: objects, detections, the only kind of error, the AP that it costs.
CASES = {
    # The wrong box claims its object once corrected: AP 0.5 -> 1.
    "localisation": (BOTH_OBJECTS, ([OTHER, SHIFTED], [0.9, 0.8], [0, 0]), 1 - 51 / 101),
    # Class b has one object and no detection, class a one of each: the label becomes b.
    "classification": (SECOND_CLASS, ([BOX, OTHER], [0.9, 0.8], [0, 0]), 0.5),
    # Class 1, near an object of class 0.
    "both": (SECOND_CLASS, ([OTHER, BOX, SHIFTED], [0.8, 0.8, 0.9], [1, 0, 1]), 0.25),
    # The second detection of BOX precedes the first of OTHER: precision 2/3 from recall 0.5 on.
    "duplicate": (
        BOTH_OBJECTS,
        ([BOX, BOX, OTHER], [0.9, 0.8, 0.7], [0, 0, 0]),
        50 / 101 * (1 - 2 / 3),
    ),
    "background": (BOTH_OBJECTS, ([AWAY, BOX, OTHER], [0.9, 0.8, 0.7], [0, 0, 0]), 1 - 2 / 3),
    "missed": (BOTH_OBJECTS, ([BOX], [0.9], [0]), 1 - 51 / 101),
}


@pytest.mark.parametrize("kind", CASES)
def test_error_that_is_alone(kind: str) -> None:
    truth, found, cost = CASES[kind]
    breakdown = error_breakdown(table((truth, detections(*found))), 2)
    assert breakdown[kind].count == 1
    assert breakdown[kind].ap_cost == pytest.approx(cost, abs=1e-9)
    for other in KINDS:
        if other != kind:
            assert (breakdown[other].count, breakdown[other].ap_cost) == (0, 0.0), other


def test_perfect_detections_have_no_errors() -> None:
    breakdown = error_breakdown(
        table((BOTH_OBJECTS, detections([BOX, OTHER], [0.9, 0.8], [0, 0]))), 1
    )
    assert {(error.count, error.ap_cost) for error in breakdown.values()} == {(0, 0.0)}


def test_detection_on_an_ignored_object_is_not_an_error() -> None:
    truth = objects([BOX, OTHER], [0, 0], difficult=[False, True])
    found = table((truth, detections([BOX, OTHER], [0.8, 0.9], [0, 0])))
    assert not (detection_errors(found) >= 0).any()
    assert not missed_objects(table((truth, detections([BOX], [0.8], [0])))).any()


def test_of_two_corrected_detections_the_higher_score_stays() -> None:
    # Correcting the box of the stronger one makes the weaker match a duplicate, which is removed.
    found = table((objects([BOX], [0]), detections([SHIFTED, BOX], [0.9, 0.5], [0, 0])))
    assert error_breakdown(found, 1)["localisation"].ap_cost == pytest.approx(0.5)


def test_every_detection_has_one_verdict_and_every_object_is_accounted_for() -> None:
    found = match_images(random_scenes(0, 60, 3, crowd=0.1, difficult=0.1))
    breakdown = error_breakdown(found, 3)
    counted = found.rank < 100
    ignored = (found.ignored & 1).astype(bool)
    positive = (found.matched & 1).astype(bool) & ~ignored
    wrong = sum(breakdown[kind].count for kind in KINDS if kind != "missed")
    assert wrong == (counted & ~ignored & ~positive).sum()
    assert all(error.count > 0 for error in breakdown.values())
    assert all(error.ap_cost > -1e-12 for error in breakdown.values())
    before = coco_metrics(found, ["a", "b", "c"]).metrics["ap50"]
    assert all(before + error.ap_cost <= 1 + 1e-12 for error in breakdown.values())
