"""How well anchors fit objects: each object's best anchor, and a search for anchors that fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.anchor_shapes import AnchorShapes

Floats = NDArray[np.float64]

FIT_IOU = 0.5  # from which an anchor fits an object, as the assigners' `pos_threshold`
MAX_SEARCH_OBJECTS = 2000
BASES = 2.0 ** np.arange(1, 8.01, 0.25)  # pixels
STEPS = (2**0.25, 2**0.125, 2**0.0625)  # factors of one change, coarse to fine
MAX_ROUNDS = 40  # of each loop; a search ends far earlier
_CHUNK = 2**20  # IoUs at a time


class AnchorFit(NamedTuple):
    """Anchors, and the share of objects that they do not fit."""

    shapes: AnchorShapes
    missed: float


def best_ious(boxes: Floats, shapes: AnchorShapes, image_size: int) -> Floats:
    """Return the IoU (N,) of each object (N,4), in pixels of the input, with its best anchor.

    Of the anchors of one size, the one with the nearest centre is the best: so one anchor of each
    size is compared, not all of the grid.
    """
    best = np.zeros(len(boxes))
    strides = shapes.level_strides(image_size)
    sizes = np.array([[*size, s] for s in strides for size in shapes.sizes(s, image_size)])  # (K,3)
    rows = max(1, _CHUNK // len(sizes))
    for start in range(0, len(boxes), rows):
        best[start : start + rows] = _best(boxes[start : start + rows], sizes, image_size)
    return best


def _best(boxes: Floats, sizes: Floats, image_size: int) -> Floats:
    """Return the best IoU (n,) of boxes (n,4) over anchors (K,3) of width, height and stride."""
    width, height, stride = sizes.T  # (K,) each
    cells = np.ceil(image_size / stride)
    overlap, area = np.ones(1), np.ones(1)
    for axis, extent in ((0, width), (1, height)):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]  # (n,1)
        cell = np.clip(np.floor((low + high) / 2 / stride), 0, cells - 1)  # (n,K)
        centre = (cell + 0.5) * stride
        inside = np.minimum(high, centre + extent / 2) - np.maximum(low, centre - extent / 2)
        overlap = overlap * np.maximum(inside, 0.0)  # (n,K)
        area = area * (high - low)  # (n,1)
    best: Floats = np.max(overlap / (area + width * height - overlap), axis=1)
    return best


def missed_share(boxes: Floats, shapes: AnchorShapes, image_size: int) -> float:
    """Return the share of objects (N,4), N at least 1, without an anchor that fits."""
    return float(np.mean(best_ious(boxes, shapes, image_size) < FIT_IOU))


def fit_anchors(boxes: Floats, start: AnchorShapes, image_size: int) -> AnchorFit:
    """Search anchors that fit objects (N,4), N at least 1, with as many scales and ratios.

    Maximises the share of objects with an IoU of `FIT_IOU` plus the mean of the best IoUs, over at
    most `MAX_SEARCH_OBJECTS` of the objects, evenly spaced. Begins at the best of a grid of bases,
    with the given scales and ratios, and with scales that divide an octave and the centres of
    k-means over the logarithms of the objects' ratios. From there it changes one number at a time
    by a fixed factor while that helps, with ever smaller factors. This is repeated with the scales
    and ratios that were found, until it finds nothing better: so anchors that were found here are
    found again. The same objects give the same anchors.
    """
    chosen = boxes[:: -(-len(boxes) // MAX_SEARCH_OBJECTS)]
    scores: dict[AnchorShapes, float] = {}

    def score(shapes: AnchorShapes) -> float:
        if shapes not in scores:
            ious = best_ious(chosen, shapes, image_size)
            scores[shapes] = float(np.mean(ious >= FIT_IOU) + np.mean(ious))
        return scores[shapes]

    count = len(start.scales)
    octave = tuple(2.0 ** (n / count) for n in range(count))
    own = _ratio_centres(chosen, len(start.ratios))
    best = start
    for _ in range(MAX_ROUNDS):  # three or four in practice
        kinds = ((best.scales, best.ratios), (octave, own))
        grid = [
            replace(best, base=float(base), scales=scales, ratios=ratios)
            for base in BASES
            for scales, ratios in kinds
        ]
        better = _rounded(_descend(max([best, *grid], key=score), score))
        if score(better) <= score(best):
            break
        best = better
    return AnchorFit(best, missed_share(boxes, best, image_size))


def fit_base(boxes: Floats, start: AnchorShapes, image_size: int) -> AnchorFit:
    """Return the best of a grid of bases, with two digits; scales and ratios stay as they are."""
    bases = sorted({float(f"{base:.2g}") for base in BASES})
    fits = []
    for base in bases:
        shapes = replace(start, base=base)
        ious = best_ious(boxes, shapes, image_size)
        fits.append((float(np.mean(ious >= FIT_IOU) + np.mean(ious)), shapes))
    best = max(fits, key=lambda fit: fit[0])[1]
    return AnchorFit(best, missed_share(boxes, best, image_size))


def _descend(best: AnchorShapes, score: Callable[[AnchorShapes], float]) -> AnchorShapes:
    """Change one number at a time as long as the score grows, by ever smaller factors."""
    for step in STEPS:
        for _ in range(MAX_ROUNDS):
            better = max(_neighbours(best, step), key=score, default=best)
            if score(better) <= score(best):
                break
            best = better
    return best


def _ratio_centres(boxes: Floats, count: int) -> tuple[float, ...]:
    """Return ``count`` different ratios: centres of k-means over log(width / height)."""
    ratios = np.sort(np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])))
    centres = np.quantile(ratios, (np.arange(count) + 0.5) / count)
    for _ in range(MAX_ROUNDS):
        nearest = np.abs(ratios[:, None] - centres).argmin(1)  # (N,)
        groups = [ratios[nearest == n] for n in range(count)]
        moved = np.array([g.mean() if len(g) else c for g, c in zip(groups, centres, strict=True)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    # Equal centres, where most objects have one ratio, are moved apart.
    values = sorted(float(np.exp(np.clip(c, np.log(1 / 16), np.log(16)))) for c in centres)
    for n in range(1, count):
        values[n] = max(values[n], values[n - 1] * (1 + 1 / count))
    return tuple(values)


def _neighbours(shapes: AnchorShapes, step: float) -> list[AnchorShapes]:
    """Return the shapes with one number multiplied or divided by the step, if they are valid."""
    numbers = [shapes.base, *shapes.scales, *shapes.ratios]
    count = len(shapes.scales)
    found = []
    for position, factor in itertools.product(range(len(numbers)), (step, 1 / step)):
        if position == 1:  # the first scale; the base changes all of them
            continue
        changed = [n * factor if at == position else n for at, n in enumerate(numbers)]
        try:
            scales, ratios = tuple(changed[1 : count + 1]), tuple(changed[count + 1 :])
            found.append(replace(shapes, base=changed[0], scales=scales, ratios=ratios))
        except ValueError:
            continue  # out of bounds, or two numbers became equal
    return found


def _rounded(shapes: AnchorShapes) -> AnchorShapes:
    """Return the shapes with three digits, in order, the base for a first scale of 1."""
    first = min(shapes.scales)

    def digits(values: list[float]) -> tuple[float, ...]:
        short = [float(f"{value:.3g}") for value in values]
        return tuple(sorted(short if len(set(short)) == len(values) else values))

    scales = digits([scale / first for scale in shapes.scales])
    base, ratios = float(f"{shapes.base * first:.3g}"), digits(list(shapes.ratios))
    return replace(shapes, base=base, scales=scales, ratios=ratios)
