"""Bounding boxes of segmentations, for annotations that have no bbox."""

from __future__ import annotations

import math
from typing import Any

from pipeline.data.sources.values import read_number

MAX_MASK_SIDE = 2**16


def outline_box(segmentation: Any) -> list[float] | None:
    """Return x, y, width, height of polygons or of a run-length encoded mask; None if unreadable.

    Polygons are lists of x, y, x, y, ..., or one such list. A mask of runs has integer counts or
    COCO's compressed text.
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation.get("counts"), segmentation.get("size"))
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        numbers = [read_number(v) for v in polygon] if isinstance(polygon, list) else []
        values = [v for v in numbers if v is not None and math.isfinite(v)]
        if len(values) != len(numbers) or len(values) < 4 or len(values) % 2:
            return None
        xs += values[::2]
        ys += values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _mask_box(counts: Any, size: Any) -> list[float] | None:
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side <= MAX_MASK_SIDE for side in size)
    ):
        return None
    from pycocotools import mask  # compiled, and rarely needed

    # What is not checked here would be read outside the memory of the library.
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != math.prod(
            size
        ):
            return None
        encoded = mask.frPyObjects({"counts": counts, "size": size}, *size)
    elif isinstance(counts, str) and counts and _is_compressed(counts):
        encoded = {"counts": counts.encode(), "size": size}
    else:
        return None
    return [float(value) for value in mask.toBbox(encoded)]


def _is_compressed(counts: str) -> bool:
    """Return whether a text has only characters of COCO's encoding, and a complete last number."""
    return all(48 <= ord(letter) < 112 for letter in counts) and not (ord(counts[-1]) - 48) & 32
