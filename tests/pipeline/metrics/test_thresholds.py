"""Test curves over the score threshold and the confusion matrix, by hand."""

import numpy as np
import pytest

from pipeline.metrics.suspects import label_suspects
from pipeline.metrics.thresholds import confusion_matrix, threshold_curve
from tests.pipeline.metrics.scenes import detections, objects, table

BOX = (10.0, 10.0, 60.0, 60.0)
OTHER = (100.0, 100.0, 150.0, 150.0)
AWAY = (160.0, 10.0, 190.0, 40.0)


def test_curve_and_its_best_threshold() -> None:
    found = detections([BOX, AWAY, OTHER, AWAY], [0.9, 0.8, 0.7, 0.1], [0, 0, 0, 0])
    curve = threshold_curve(table((objects([BOX, OTHER], [0, 0]), found)))
    assert curve is not None
    assert curve.threshold == pytest.approx([0.9, 0.8, 0.7, 0.1])
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert curve.recall == pytest.approx([1 / 2, 1 / 2, 1, 1])
    assert curve.f1 == pytest.approx([2 / 3, 1 / 2, 4 / 5, 2 / 3])
    assert curve.threshold[curve.best] == pytest.approx(0.7)


def test_curve_of_one_class_and_of_none() -> None:
    found = table((objects([BOX], [0]), detections([BOX, OTHER], [0.9, 0.8], [0, 1])))
    of_class = threshold_curve(found, 0)
    assert of_class is not None and of_class.f1.tolist() == [1.0]
    assert threshold_curve(found, 1) is None


def test_equal_scores_are_one_point() -> None:
    found = table((objects([BOX], [0]), detections([AWAY, BOX], [0.5, 0.5], [0, 0])))
    curve = threshold_curve(found)
    assert curve is not None
    assert (curve.precision.tolist(), curve.recall.tolist()) == ([0.5], [1.0])


def test_long_curve_is_thinned_and_keeps_its_best_point() -> None:
    rng = np.random.default_rng(0)
    images = [
        (objects([BOX], [0]), detections([BOX, AWAY], rng.random(2), [0, 0])) for _ in range(400)
    ]
    curve = threshold_curve(table(*images))
    assert curve is not None
    assert len(curve.f1) <= 201
    assert curve.f1[curve.best] == curve.f1.max()


def test_confusion_matrix_counts_each_object_and_detection_once() -> None:
    truth = objects([BOX, OTHER], [0, 1])
    found = detections([BOX, BOX, OTHER, AWAY], [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    matrix = confusion_matrix(table((truth, found)), 2, 0.5)
    # BOX is seen as class 1 (0.9 precedes 0.8), OTHER is right, AWAY and the second are alone.
    assert matrix.tolist() == [[0, 1, 0], [0, 1, 0], [2, 0, 0]]
    strict = confusion_matrix(table((truth, found)), 2, 0.85)
    assert strict.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_confusion_matrix_leaves_out_difficult_objects() -> None:
    truth = objects([BOX], [0], difficult=[True])
    assert confusion_matrix(table((truth, detections([BOX], [0.9], [0]))), 1, 0.5).sum() == 0


def test_curve_of_many_weak_detections_follows_the_recall() -> None:
    # 100 objects found at high scores, 5,000 weak detections where nothing is.
    strong = [
        (objects([BOX], [0]), detections([BOX], [0.9 - number / 1000], [0]))
        for number in range(100)
    ]
    weak = [(objects(), detections([BOX], [0.1 - number / 1e5], [0])) for number in range(5000)]
    curve = threshold_curve(table(*strong, *weak))
    assert curve is not None
    assert len(curve.recall) <= 201
    assert np.diff(curve.recall).max() < 0.03
    assert curve.f1[curve.best] == 1.0


def test_detections_in_a_crowd_are_neither_confused_nor_suspected() -> None:
    region = (0.0, 0.0, 200.0, 200.0)
    truth = objects([BOX, region], [0, 0], crowd=[False, True])
    found = table((truth, detections([BOX, OTHER, AWAY], [0.9, 0.8, 0.7], [0, 0, 0])))
    assert confusion_matrix(found, 1, 0.5).tolist() == [[1, 0], [0, 0]]
    assert label_suspects(found, 0.5, 10) == []
