"""Compare the annotated size of an image with the real one, and scale boxes that it explains."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.data.sources.record import Object, Record
from pipeline.data.transforms.decode import ImageError

# Differences that conversions between formats leave. Boxes are not scaled for them.
MAX_DIFFERENCE = 2


class Fitted(NamedTuple):
    """Objects in pixels of their image; what was repaired, or a note if that is harmless."""

    objects: list[Object]
    repair: str | None = None
    note: str | None = None


def fit_objects(record: Record, size: tuple[int, int], sideways: bool) -> Fitted:
    """Return the objects of a record, in pixels of the image of this width and height.

    ``sideways`` images have an EXIF orientation that exchanges width and height. Raises ImageError
    if the annotated size contradicts the image or the boxes.
    """
    objects, annotated = record.objects, record.size
    if annotated is None or record.relative:
        return Fitted(objects)
    if sideways and record.size_upright not in (None, record.upright):
        annotated = annotated[1], annotated[0]
    if annotated == size:
        return Fitted(objects)
    shown = f"annotated size is {_show(annotated)}, the image is {_show(size)}"
    if min(annotated) <= 0 or _differ_little(annotated, size):
        return Fitted(objects, note=shown)
    if not has_shape(annotated, size):
        raise ImageError(f"{shown}; correct the size, or delete it if the boxes fit the image")
    if not all(_fits(item, annotated) for item in objects):
        raise ImageError(f"{shown}, and a box reaches out of the annotated size; correct one")
    x, y = size[0] / annotated[0], size[1] / annotated[1]
    return Fitted([_scale(item, x, y) for item in objects], f"{shown}; boxes are scaled")


def has_shape(annotated: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether two sizes are equal up to 2 pixels, or one is a scaled version of the other.

    The sides of the smaller one are whole numbers, so they may differ by one pixel.
    """
    if min(*annotated, *size) <= 0:
        return False
    if _differ_little(annotated, size):
        return True
    small, large = sorted((annotated, size))
    by_width, by_height = small[0] / large[0], small[1] / large[1]
    return abs(large[1] * by_width - small[1]) <= 1 or abs(large[0] * by_height - small[0]) <= 1


def _differ_little(annotated: tuple[int, int], size: tuple[int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(annotated, size, strict=True)) <= MAX_DIFFERENCE


def _fits(item: Object, size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = item.box
    low, (width, height) = -MAX_DIFFERENCE, size
    return (
        low <= min(x1, x2)
        and low <= min(y1, y2)
        and max(x1, x2) <= width + MAX_DIFFERENCE
        and max(y1, y2) <= height + MAX_DIFFERENCE
    )


def _scale(item: Object, x: float, y: float) -> Object:
    x1, y1, x2, y2 = item.box
    area = None if item.area is None else item.area * x * y
    return item._replace(box=(x1 * x, y1 * y, x2 * x, y2 * y), area=area)


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
