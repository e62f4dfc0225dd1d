"""How far scores are probabilities: of a detection being positive at IoU 0.5, and of its IoU.

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (expected calibration
error, temperature).

Shape letters: D detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.table import MAX_DETECTIONS, MatchTable

BINS = 10
_Floats = NDArray[np.float64]
_TEMPERATURE_BOUNDS = (0.1, 10.0)
_GOLDEN = (5**0.5 - 1) / 2
_MAX_FITTED = 250_000  # detections, which suffice for one parameter
_SEARCH_STEPS = 20  # each narrows the interval of the logarithm to 0.62 of its length


@dataclass(frozen=True)
class Calibration:
    """Scores and outcomes by bin of the score, all arrays (BINS,); empty bins are NaN.

    ``error`` is the expected calibration error: the mean distance of score and precision, weighted
    by detections. ``score_iou_correlation`` is Pearson's, of positives; NaN for fewer than two.
    """

    score: _Floats
    precision: _Floats
    count: NDArray[np.int64]
    error: float
    score_iou_correlation: float


def calibration(table: MatchTable, temperature: float = 1.0) -> Calibration:
    """Return the calibration of the scores after division of their logits by a temperature."""
    rows, positive = _counted(table)
    scores = apply_temperature(table.score[rows], temperature)
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        score = np.bincount(bins, scores, BINS) / count
        precision = np.bincount(bins, positive, BINS) / count
    distance = np.nan_to_num(np.abs(score - precision))
    error = float((distance * count).sum() / max(1, count.sum()))
    own, iou = scores[positive], table.same_class_iou[rows[positive]]
    correlated = len(own) > 1 and own.std() > 0 and iou.std() > 0
    correlation = float(np.corrcoef(own, iou)[0, 1]) if correlated else float("nan")
    return Calibration(score, precision, count, error, correlation)


def fit_temperature(table: MatchTable) -> float:
    """Return the temperature from 0.1 to 10 whose scores have the highest likelihood.

    1 if there are no positives or nothing else, so that nothing can be fitted.
    """
    rows, positive = _counted(table)
    if positive.all() or not positive.any():
        return 1.0
    if len(rows) > _MAX_FITTED:
        # At random: every n-th row would prefer some ranks where images have equally many rows.
        rng = np.random.default_rng(0)
        part = rng.choice(len(rows), _MAX_FITTED, replace=False, shuffle=False)
        part.sort()
        rows, positive = rows[part], positive[part]
    logits = _logits(table.score[rows])
    margins = np.where(positive, -logits, logits)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, margins * np.exp(-log_temperature)).mean())

    # The loss is convex in 1 / temperature, so it has one minimum: golden-section search.
    low, high = (float(np.log(bound)) for bound in _TEMPERATURE_BOUNDS)
    for _ in range(_SEARCH_STEPS):
        step = (high - low) * _GOLDEN
        if loss(high - step) < loss(low + step):
            high = low + step
        else:
            low = high - step
    return float(np.exp((low + high) / 2))


def apply_temperature(scores: _Floats, temperature: float) -> _Floats:
    """Divide the logits of scores by a temperature; above 1 it makes them less confident."""
    calibrated: _Floats = 1.0 / (1.0 + np.exp(-_logits(scores) / temperature))
    return calibrated


def _counted(table: MatchTable) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    ignored = (table.ignored & np.uint64(1)).astype(np.bool_)
    rows = np.flatnonzero((table.rank < MAX_DETECTIONS) & ~ignored)
    return rows, (table.matched[rows] & np.uint64(1)).astype(np.bool_)


def _logits(scores: _Floats) -> _Floats:
    clipped = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    logits: _Floats = np.log(clipped) - np.log1p(-clipped)
    return logits
