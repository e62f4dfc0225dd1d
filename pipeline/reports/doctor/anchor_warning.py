"""A warning at the start of a training if its anchors do not fit, from a few samples."""

from __future__ import annotations

import contextlib

import numpy as np

from pipeline.config import Config
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError
from pipeline.reports.doctor.anchor_fit import FIT_IOU, best_ious, fit_anchors
from pipeline.reports.doctor.box_findings import MAX_MISSED, MIN_GAIN
from pipeline.reports.doctor.finding import percent
from pipeline.reports.doctor.statistics import Floats, to_input

SAMPLES = 256
SEARCH_OBJECTS = 500


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
    fitted = fit_anchors(boxes[:: -(-len(boxes) // SEARCH_OBJECTS)], shapes, size)
    share = float(missed.mean())
    remedy = "use a larger model.image_size or more model.anchor_scales"
    if fitted.missed < share - MIN_GAIN:
        remedy = f"{percent(fitted.missed, 1)} with {fitted.shapes}"
    return (
        f"{percent(share, 1)} of the objects have no anchor with an IoU of {FIT_IOU:g} or more "
        f"({shapes}; {min(SAMPLES, len(shards))} images): {remedy}; see python -m jobs.shards "
        "doctor"
    )


def _some_boxes(shards: ShardSet, config: Config) -> Floats:
    """Return the boxes (N,4) of objects of some samples, in pixels of the input."""
    size, fit = config.model.image_size, config.data.fit
    found = [np.zeros((0, 4))]
    for index in np.linspace(0, len(shards) - 1, min(SAMPLES, len(shards))).astype(int).tolist():
        with contextlib.suppress(ImageError, OSError):  # the loader reports it
            sample = parse_sample(shards.read_json(index), len(shards.manifest.classes))
            found.append(to_input(sample, sample.objects(), size, fit))
    return np.concatenate(found)
