"""A warning at the start of a training if its anchors do not fit, from a few samples."""

from __future__ import annotations

import contextlib

import numpy as np

from model.anchor_shapes import FIRST_STRIDE, AnchorShapes
from pipeline.config import Config
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError
from pipeline.reports.doctor.anchor_fit import (
    FIT_IOU,
    best_ious,
    fit_anchors,
    fit_base,
    missed_share,
)
from pipeline.reports.doctor.box_findings import MAX_MISSED
from pipeline.reports.doctor.finding import percent
from pipeline.reports.doctor.statistics import Floats, to_input

SAMPLES = 256
SEARCH_OBJECTS = 500
NOTABLE_GAIN = 0.02  # of the share of objects that fit, from which other anchors are named
SMALL_SIDE = 2 * FIRST_STRIDE  # pixels; below, the nearest anchor may be half an object away


def anchor_warning(shards: ShardSet, config: Config) -> str | None:
    """Return a line if anchors do not fit more than `MAX_MISSED` of the objects, else None.

    Reads the annotations of at most `SAMPLES` images, evenly spaced. None for a remote set, of
    which that would fetch many shards.
    """
    if shards.remote:
        return None
    boxes = _some_boxes(shards, config)
    shapes, size = config.model.anchor_shapes, config.model.image_size
    missed = best_ious(boxes, shapes, size) < FIT_IOU
    if missed.sum() <= MAX_MISSED * len(boxes):
        return None
    some = boxes[:: -(-len(boxes) // SEARCH_OBJECTS)]
    return (
        f"{percent(float(missed.mean()), 1)} of the objects have no anchor with an IoU of "
        f"{FIT_IOU:g} or more ({shapes}; {min(SAMPLES, len(shards))} images): "
        f"{_remedy(some, shapes, size)}; see python -m jobs.shards doctor"
    )


def _remedy(boxes: Floats, shapes: AnchorShapes, size: int) -> str:
    """Return which anchors fit more of the objects (N,4): another base, and the best of all."""
    found, missed = [], missed_share(boxes, shapes, size)
    for name, fit in (
        ("model.anchor_base {:g}", fit_base(boxes, shapes, size)),
        ("{}", fit_anchors(boxes, shapes, size)),
    ):
        if fit.missed < missed - NOTABLE_GAIN:
            best, missed = fit, fit.missed
            value = best.shapes.base if ":g" in name else best.shapes
            found.append(f"{percent(missed, 1)} with {name.format(value)}")
    if not found:
        return "use a larger model.image_size or more model.anchor_scales"
    lost = boxes[best_ious(boxes, best.shapes, size) < FIT_IOU]
    sides = np.sqrt(np.prod(lost[:, 2:] - lost[:, :2], axis=1))
    if missed > MAX_MISSED and np.median(sides) < SMALL_SIDE:
        found.append("the others are small: a larger model.image_size fits more")
    return "; ".join(found)


def _some_boxes(shards: ShardSet, config: Config) -> Floats:
    """Return the boxes (N,4) of objects of some samples, in pixels of the input."""
    size, fit = config.model.image_size, config.data.fit
    found = [np.zeros((0, 4))]
    for index in np.linspace(0, len(shards) - 1, min(SAMPLES, len(shards))).astype(int).tolist():
        with contextlib.suppress(ImageError, OSError):  # the loader reports it
            sample = parse_sample(shards.read_json(index), len(shards.manifest.classes))
            found.append(to_input(sample, sample.objects(), size, fit))
    return np.concatenate(found)
