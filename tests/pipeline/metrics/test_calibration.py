"""Test calibration on scores whose probabilities are known."""

import numpy as np
import pytest

from pipeline.metrics.calibration import apply_temperature, calibration, fit_temperature
from tests.pipeline.metrics.scenes import detections, objects, table

BOX = (10.0, 10.0, 60.0, 60.0)
AWAY = (160.0, 10.0, 190.0, 40.0)


def drawn(probabilities: np.ndarray, scores: np.ndarray):
    """Return a table where each detection is positive with its probability."""
    rng = np.random.default_rng(0)
    return table(
        *(
            (objects([BOX], [0]), detections([BOX if hit else AWAY], [score], [0]))
            for hit, score in zip(rng.random(len(scores)) < probabilities, scores, strict=True)
        )
    )


def test_true_probabilities_are_calibrated() -> None:
    scores = np.random.default_rng(1).random(4000)
    found = calibration(drawn(scores, scores))
    assert found.error < 0.03
    assert found.count.sum() == 4000
    assert np.abs(found.score - found.precision).max() < 0.1


def test_temperature_repairs_overconfident_scores() -> None:
    true = np.random.default_rng(1).random(4000)
    overconfident = apply_temperature(true, 1 / 3)
    found = drawn(true, overconfident)
    assert fit_temperature(found) == pytest.approx(3.0, rel=0.15)
    assert calibration(found, fit_temperature(found)).error < calibration(found).error / 3


def test_temperature_of_many_detections_is_that_of_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = np.random.default_rng(1).random(8000)
    found = drawn(true, apply_temperature(true, 1 / 3))
    whole = fit_temperature(found)
    monkeypatch.setattr("pipeline.metrics.calibration._MAX_FITTED", 4000)
    part = fit_temperature(found)
    assert part != whole
    assert part == pytest.approx(whole, rel=0.1)


def test_part_of_many_detections_has_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Images of 10 detections; the scores of the first ones are too low, of the others too high.
    true = np.random.default_rng(1).random((2000, 10))
    scores = apply_temperature(true, 1 / 3)
    scores[:, 0] = apply_temperature(true[:, 0], 3)
    found = drawn(true.ravel(), scores.ravel())
    whole = fit_temperature(found)
    monkeypatch.setattr("pipeline.metrics.calibration._MAX_FITTED", 2000)
    part = fit_temperature(found)
    assert part == fit_temperature(found)
    assert part == pytest.approx(whole, rel=0.1)


def test_nothing_to_fit() -> None:
    empty = table((objects(), detections()))
    assert fit_temperature(empty) == 1.0
    assert fit_temperature(drawn(np.ones(5), np.full(5, 0.5))) == 1.0
    assert calibration(empty).error == 0.0
    assert np.isnan(calibration(empty).score_iou_correlation)


def test_correlation_of_score_and_overlap() -> None:
    boxes = [(10.0, 10.0, 60.0, 60.0 - cut) for cut in (0, 5, 10, 15)]
    images = [
        (objects([BOX], [0]), detections([box], [score], [0]))
        for box, score in zip(boxes, (0.9, 0.8, 0.7, 0.6), strict=True)
    ]
    assert calibration(table(*images)).score_iou_correlation == pytest.approx(1.0)
