"""Bootstrap intervals of average precision over images, for one model or for a pair.

A resample draws as many images as there are, with replacement: image n counts w[n] times. The AP of
a resample is computed from sums of those weights at the positives only, for a block of resamples at
once, since a negative changes the precision of the positives behind it and nothing else. For two
models on the same images the same resamples are used, so that the interval of the difference
contains what the images have in common only once.

Equal scores are taken in the order of the table, as COCO takes them in the order of the images.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993: percentile intervals.

Shape letters: R resamples, N images, D detections of a class, P positives at one threshold,
C classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.metrics.coco import RECALLS, ClassOutcome, class_outcome, rows_by_class
from pipeline.metrics.table import AREA_RANGES, IOU_THRESHOLDS, MatchTable

RESAMPLES = 1000
_BLOCK = 64  # resamples at a time
_RECALLS = torch.from_numpy(RECALLS)
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """AP per class: ``ap`` (C,) of all images, ``samples`` (R,C) of the resamples.

    A class without objects, in the set or in a resample, is NaN.
    """

    ap: _Floats
    samples: _Floats

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the mean AP over classes with its interval."""
        return _interval(_mean(self.ap[None])[0], _mean(self.samples), confidence)

    def class_interval(self, label: int, confidence: float = 0.95) -> Interval:
        """Return the AP of one class with its interval."""
        return _interval(self.ap[label], self.samples[:, label], confidence)


@dataclass(frozen=True)
class Gain:
    """How much the AP of a candidate exceeds that of a reference on the same images."""

    candidate: Resampled
    reference: Resampled

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the difference of the mean AP with its interval."""
        value = _mean(self.candidate.ap[None])[0] - _mean(self.reference.ap[None])[0]
        samples = _mean(self.candidate.samples) - _mean(self.reference.samples)
        return _interval(value, samples, confidence)

    def class_interval(self, label: int, confidence: float = 0.95) -> Interval:
        """Return the difference of the AP of one class with its interval."""
        value = self.candidate.ap[label] - self.reference.ap[label]
        samples = self.candidate.samples[:, label] - self.reference.samples[:, label]
        return _interval(value, samples, confidence)


def bootstrap(
    table: MatchTable,
    classes: int,
    ious: Sequence[int] = tuple(range(len(IOU_THRESHOLDS))),
    resamples: int = RESAMPLES,
    seed: int = 0,
    area: int = 0,
) -> Resampled:
    """Resample the images of one table.

    ``ious`` are indices of COCO's thresholds to average, ``area`` is the index of one of its ranges
    of area.
    """
    weights = image_weights(table.images, resamples, seed)
    return Resampled(*_average_precisions(table, classes, ious, weights, area))


def paired_bootstrap(
    candidate: MatchTable,
    reference: MatchTable,
    classes: int,
    ious: Sequence[int] = tuple(range(len(IOU_THRESHOLDS))),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """Resample two tables by the same images. Raises ValueError if they have other images."""
    if not np.array_equal(candidate.image_ids, reference.image_ids):
        raise ValueError("the two match tables do not have the same images in the same order")
    return Gain(
        bootstrap(candidate, classes, ious, resamples, seed),
        bootstrap(reference, classes, ious, resamples, seed),
    )


def image_weights(images: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """Return how often each resample contains each image (R,N)."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, images), np.int32)
    for row in weights:
        row += np.bincount(generator.integers(0, images, images), minlength=images).astype(np.int32)
    return weights


def _average_precisions(
    table: MatchTable,
    classes: int,
    ious: Sequence[int],
    weights: NDArray[np.int32],
    area: int = 0,
) -> tuple[_Floats, _Floats]:
    ap = np.full(classes, np.nan)
    samples = np.full((len(weights), classes), np.nan)
    low, high = AREA_RANGES[area]
    in_range = (table.object_area >= low) & (table.object_area <= high)
    counted = ~table.object_ignored & in_range
    outcomes = {}
    for label, rows in enumerate(rows_by_class(table, classes)):
        outcome = class_outcome(table, rows, label, area)
        if outcome.objects:
            images = table.object_image[(table.object_label == label) & counted]
            outcomes[label] = outcome, torch.from_numpy(np.bincount(images, minlength=table.images))
    once = np.ones((1, table.images), np.int32)
    for target, all_weights in ((ap[None], once), (samples, weights)):
        for block in _blocks(len(all_weights)):
            columns = torch.from_numpy(all_weights[block].T.astype(np.float64))  # (N,R)
            for label, (outcome, of_class) in outcomes.items():
                objects = of_class.double() @ columns  # (R,)
                total = _class_ap(table, outcome, ious, objects, columns)
                value = total / (len(_RECALLS) * len(ious))
                value[objects == 0] = float("nan")
                target[block, label] = value.numpy()
    return ap, samples


def _class_ap(
    table: MatchTable,
    outcome: ClassOutcome,
    ious: Sequence[int],
    objects: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return 101 times the AP (R,) of one class, summed over thresholds, for weights (N,R)."""
    chosen = outcome.positive[list(ious)]  # (T,D)
    any_positive = np.flatnonzero(chosen.any(0))  # (P,)
    total = weights.new_zeros(weights.shape[1])
    if not len(any_positive):
        return total
    images = table.image[outcome.rows]
    # Detections up to each positive: sums over the stretches between them, added up.
    count = _stretches(weights, images, any_positive).cumsum(0)  # (P,R)
    of_positive = weights[torch.from_numpy(images[any_positive])]  # (P,R)
    for iou, positive in zip(ious, chosen[:, any_positive], strict=True):
        rows = torch.from_numpy(np.flatnonzero(positive))
        if not len(rows):
            continue
        counted = count[rows]
        ignored = np.flatnonzero(~outcome.positive[iou] & ~outcome.negative[iou])
        if len(ignored):
            ends = np.searchsorted(ignored, any_positive[positive]) - 1
            ignored_sum = weights[torch.from_numpy(images[ignored])].cumsum(0)
            some = torch.from_numpy(ends >= 0)
            counted[some] -= ignored_sum[torch.from_numpy(ends)[some]]
        total += _interpolated(of_positive[rows], counted, objects)
    return total


def _stretches(weights: Tensor, images: NDArray[np.int32], ends: NDArray[np.int64]) -> Tensor:
    """Return the sums (P,R) of the weights (N,R) of detections after one end up to the next."""
    starts = torch.from_numpy(np.concatenate([[0], ends[:-1] + 1]))
    used = torch.from_numpy(images[: ends[-1] + 1].astype(np.int64))
    return functional.embedding_bag(used, weights, starts, mode="sum")


def _interpolated(positive: Tensor, count: Tensor, objects: Tensor) -> Tensor:
    """Return the summed precision (R,) at 101 recalls from positives (P,R) and counts (P,R).

    Each positive has the recalls that are reached with it and not before.
    """
    found = positive.cumsum(0)
    envelope = (found / count.clamp(min=1)).flip(0).cummax(0).values.flip(0)
    reached = torch.bucketize(found / objects, _RECALLS, right=True, out_int32=True)
    reached *= found > 0  # recall 0 is reached with the first positive
    steps = torch.diff(reached, dim=0, prepend=reached.new_zeros(1, reached.shape[1]))
    return (steps * envelope).sum(0)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def _mean(ap: _Floats) -> _Floats:
    """Return the mean (R,) over classes (R,C) that have objects; NaN where none has."""
    known = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        mean: _Floats = np.where(known, ap, 0.0).sum(axis=1) / known.sum(axis=1)
    return mean


def _interval(value: float, samples: _Floats, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    if np.isnan(samples).all():
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.nanquantile(samples, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high))
