"""Check the objects of one image against its size, and against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.shards.sample import Box
from pipeline.data.sources.record import Object, Record

# Annotation files round; a box may reach this far outside the image without being reported.
ROUNDING_PIXELS = 0.05


def check_objects(
    record: Record,
    width: int,
    height: int,
    labels: Mapping[str, int],
    counts: ObjectCounts,
    problems: list[Problem],
) -> list[Object]:
    """Return the valid objects, in pixels, cut at the border, with their areas.

    Objects of classes that are not in ``labels`` are only counted. An object that repeats another
    one, in class and in all numbers of its box, is left out.
    """

    def report(kind: ProblemKind, reason: str) -> None:
        problems.append(Problem(file=record.annotation_file, kind=kind, reason=reason))

    counts.zero_corners += record.zero_corners
    counts.swapped += record.swapped
    for written in record.written_corners:
        size = record.size if record.size and min(record.size) > 0 else (width, height)
        counts.add_written_corners(written, *size)
    kept: list[Object] = []
    classes_by_box: dict[tuple[Box, bool], list[str]] = {}
    for item in _in_pixels(record, width, height):
        if all(map(math.isfinite, item.box)):
            counts.add_box(item.box, width, height, record.layout, record.relative)
        if item.name not in labels:
            counts.excluded[item.name] += 1
            continue
        shown = f"{item.name} {[round(v, 2) for v in item.box]}"
        fault, box = _clip_to_image(item.box, width, height)
        if box is None:
            report("box dropped", f"{shown}: {fault}")
            continue
        same = classes_by_box.setdefault((item.box, item.crowd), [])
        if item.name in same:
            report("duplicate box", f"{shown}: repeats an earlier object; kept once")
            continue
        if same:
            report("suspicious", f"{shown}: the same box is also labelled {same[0]}; both are kept")
        same.append(item.name)
        if fault:
            report("box clipped", f"{shown}: {fault}")
        counts.kept += 1
        counts.crowd += item.crowd
        kept.append(item._replace(box=box, area=_area(item, box, width * height, counts)))
    return kept


def _in_pixels(record: Record, width: int, height: int) -> Iterator[Object]:
    if not record.relative:
        yield from record.objects
        return
    for item in record.objects:
        x1, y1, x2, y2 = item.box
        yield item._replace(box=(x1 * width, y1 * height, x2 * width, y2 * height))


def _clip_to_image(box: Box, width: int, height: int) -> tuple[str | None, Box | None]:
    """Return the fault of a box, if any, and the box to keep, if any."""
    if not all(math.isfinite(v) for v in box):
        return "not finite", None
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "negative width or height; are its corners swapped?", None
    if x2 == x1 or y2 == y1:
        return "empty", None
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return f"outside the image of {width}x{height}", None
    if max(abs(a - b) for a, b in zip(inside, box, strict=True)) > ROUNDING_PIXELS:
        return f"reaches outside the image of {width}x{height}", inside
    return None, inside


def _area(item: Object, box: Box, pixels: int, counts: ObjectCounts) -> float:
    """Return the area in square pixels: of the box, if the given one cannot be the object's."""
    if item.area is not None:
        if 0 < item.area <= pixels:
            return item.area
        counts.replaced_areas += 1
    return (box[2] - box[0]) * (box[3] - box[1])
