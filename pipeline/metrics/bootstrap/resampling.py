"""Average precision of resampled images, for one model or for a pair.

A resample draws as many images as there are, with replacement: image n counts w[n] times. The AP of
a resample is computed from sums of those weights at the positives only, for a block of resamples at
once, since a negative changes the precision of the positives behind it and nothing else. For two
models on the same images the same resamples are used, so that the interval of the difference
contains what the images have in common only once.

Equal scores are taken in the order of the table, as COCO takes them in the order of the images.

COCO's and VOC's forms of AP differ in what is positive and in how the curve is interpolated.

Shape letters: R resamples, N images, D detections of a class, P positives at one threshold,
C classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.config import Protocol
from pipeline.metrics.bootstrap.intervals import Gain, Resampled
from pipeline.metrics.coco import RECALLS, ClassOutcome, class_outcome, rows_by_class
from pipeline.metrics.table import AREA_RANGES, IOU_THRESHOLDS, MatchTable
from pipeline.metrics.voc import RECALLS_2007, voc_outcome

RESAMPLES = 1000
_BLOCK = 64  # resamples at a time
# The recalls at which precision is averaged; VOC's later form takes the area under the curve.
_POINTS = {"coco": torch.from_numpy(RECALLS), "voc07": torch.from_numpy(RECALLS_2007)}
_Floats = NDArray[np.float64]


def bootstrap(
    table: MatchTable,
    classes: int,
    ious: Sequence[int] = tuple(range(len(IOU_THRESHOLDS))),
    resamples: int = RESAMPLES,
    seed: int = 0,
    area: int = 0,
    protocol: Protocol = "coco",
) -> Resampled:
    """Resample the images of one table.

    ``ious`` are indices of COCO's thresholds to average, ``area`` is the index of one of its ranges
    of area, which VOC's protocols do not have.
    """
    weights = image_weights(table.images, resamples, seed)
    outcomes = _outcomes(table, classes, ious, area, protocol)
    once = np.ones((1, table.images), np.int32)
    ap = _average_precisions(table, classes, outcomes, once, protocol)[0]
    return Resampled(ap, _average_precisions(table, classes, outcomes, weights, protocol))


def paired_bootstrap(
    candidate: MatchTable,
    reference: MatchTable,
    classes: int,
    ious: Sequence[int] = tuple(range(len(IOU_THRESHOLDS))),
    resamples: int = RESAMPLES,
    seed: int = 0,
    protocol: Protocol = "coco",
) -> Gain:
    """Resample two tables by the same images. Raises ValueError if they have other images."""
    if not np.array_equal(candidate.image_ids, reference.image_ids):
        raise ValueError("the two match tables do not have the same images in the same order")
    return Gain(
        bootstrap(candidate, classes, ious, resamples, seed, protocol=protocol),
        bootstrap(reference, classes, ious, resamples, seed, protocol=protocol),
    )


def image_weights(images: int, resamples: int, seed: int) -> NDArray[np.int32]:
    """Return how often each resample contains each image (R,N)."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, images), np.int32)
    for row in weights:
        row += np.bincount(generator.integers(0, images, images), minlength=images).astype(np.int32)
    return weights


def _outcomes(
    table: MatchTable, classes: int, ious: Sequence[int], area: int, protocol: Protocol
) -> dict[int, tuple[ClassOutcome, Tensor]]:
    """Return, for each class with objects, its detections at ``ious``, and objects per image (N,).

    Raises ValueError for a range of area with a protocol of VOC.
    """
    if area and protocol != "coco":
        raise ValueError("ranges of area are COCO's")
    low, high = AREA_RANGES[area]
    counted = ~table.object_ignored & (table.object_area >= low) & (table.object_area <= high)
    if protocol != "coco":
        counted = ~table.object_ignored
    found = {}
    limit = {} if protocol == "coco" else {"limit": None}
    for label, rows in enumerate(rows_by_class(table, classes, **limit)):
        if protocol == "coco":
            outcome = class_outcome(table, rows, label, area)
            chosen = (outcome.positive[list(ious)], outcome.negative[list(ious)])
            outcome = ClassOutcome(rows, *chosen, outcome.objects)
        else:
            outcome = voc_outcome(table, rows, label, IOU_THRESHOLDS[list(ious)].tolist())
        if outcome.objects:
            images = table.object_image[(table.object_label == label) & counted]
            found[label] = outcome, torch.from_numpy(np.bincount(images, minlength=table.images))
    return found


def _average_precisions(
    table: MatchTable,
    classes: int,
    outcomes: dict[int, tuple[ClassOutcome, Tensor]],
    weights: NDArray[np.int32],
    protocol: Protocol,
) -> _Floats:
    """Return the AP (R,C) for weights (R,N); NaN for classes without objects."""
    samples = np.full((len(weights), classes), np.nan)
    for block in _blocks(len(weights)):
        columns = torch.from_numpy(weights[block].T.astype(np.float64))  # (N,R)
        for label, (outcome, of_class) in outcomes.items():
            objects = of_class.double() @ columns  # (R,)
            value = _class_ap(table, outcome, objects, columns, protocol)
            value[objects == 0] = float("nan")
            samples[block, label] = value.numpy()
    return samples


def _class_ap(
    table: MatchTable, outcome: ClassOutcome, objects: Tensor, weights: Tensor, protocol: Protocol
) -> Tensor:
    """Return the AP (R,) of one class as mean over thresholds, for weights (N,R)."""
    any_positive = np.flatnonzero(outcome.positive.any(0))  # (P,)
    total = weights.new_zeros(weights.shape[1])
    if not len(any_positive):
        return total
    images = table.image[outcome.rows]
    # Detections up to each positive: sums over the stretches between them, added up.
    count = _stretches(weights, images, any_positive).cumsum(0)  # (P,R)
    of_positive = weights[torch.from_numpy(images[any_positive])]  # (P,R)
    for is_positive, is_negative in zip(outcome.positive, outcome.negative, strict=True):
        positive = is_positive[any_positive]
        rows = torch.from_numpy(np.flatnonzero(positive))
        if not len(rows):
            continue
        counted = count[rows]
        ignored = np.flatnonzero(~is_positive & ~is_negative)
        if len(ignored):
            ends = np.searchsorted(ignored, any_positive[positive]) - 1
            ignored_sum = weights[torch.from_numpy(images[ignored])].cumsum(0)
            some = torch.from_numpy(ends >= 0)
            counted[some] -= ignored_sum[torch.from_numpy(ends)[some]]
        total += _interpolated(of_positive[rows], counted, objects, _POINTS.get(protocol))
    points = len(_POINTS[protocol]) if protocol in _POINTS else 1
    return total / (points * len(outcome.positive))


def _stretches(weights: Tensor, images: NDArray[np.int32], ends: NDArray[np.int64]) -> Tensor:
    """Return the sums (P,R) of the weights (N,R) of detections after one end up to the next."""
    starts = torch.from_numpy(np.concatenate([[0], ends[:-1] + 1]))
    used = torch.from_numpy(images[: ends[-1] + 1].astype(np.int64))
    return functional.embedding_bag(used, weights, starts, mode="sum")


def _interpolated(
    positive: Tensor, count: Tensor, objects: Tensor, points: Tensor | None
) -> Tensor:
    """Return the precision (R,) from positives (P,R) and counts (P,R), summed over recalls.

    Each positive has the ``points`` that are reached with it and not before. Without them it is the
    area under the curve.
    """
    found = positive.cumsum(0)
    envelope = (found / count.clamp(min=1)).flip(0).cummax(0).values.flip(0)
    if points is None:
        return (positive / objects.clamp(min=1) * envelope).sum(0)
    reached = torch.bucketize(found / objects, points, right=True, out_int32=True)
    reached *= found > 0  # recall 0 is reached with the first positive
    steps = torch.diff(reached, dim=0, prepend=reached.new_zeros(1, reached.shape[1]))
    return (steps * envelope).sum(0)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))
