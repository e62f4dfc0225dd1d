"""From a record to what is stored: every box is checked against the decoded picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.data.conversion.image_bytes import StoredImage, read_image, stored_image
from pipeline.data.shards.manifest import Problem
from pipeline.data.shards.sample import Box, Sample
from pipeline.data.sources.record import Object, Record
from pipeline.data.transforms.decode import ImageError

# Annotation files round; what is less than this outside the image is not worth a report.
ROUNDING = 0.05


class Checked(NamedTuple):
    """What is left of a record; no image and sample where it has to be skipped."""

    image: StoredImage | None
    sample: Sample | None
    problems: list[Problem]


def checked(record: Record, labels: Mapping[str, int]) -> Checked:
    """Decode the picture and keep the boxes that can be kept. ``labels`` numbers the classes."""
    problems = list(record.problems)
    if record.image is None:
        return Checked(None, None, problems)
    try:
        data = read_image(record.image)
        image = stored_image(data, record.file_name, record.size, upright=record.upright)
    except ImageError as error:
        reason = str(error)
        problems.append(Problem(file=record.file_name, kind="image skipped", reason=reason))
        return Checked(None, None, problems)
    for note in image.notes:
        problems.append(Problem(file=record.file_name, kind="repaired", reason=note))
    kept = []
    for item in record.objects:
        if record.relative:
            item = item._replace(box=_in_pixels(item.box, image.width, image.height))
        problem, box = _inside(item, image.width, image.height, labels)
        if problem:
            kind: Literal["box clipped", "box dropped"] = "box clipped" if box else "box dropped"
            problems.append(Problem(file=record.annotation, kind=kind, reason=problem))
        if box:
            kept.append((item, box))
    sample = Sample.make(
        image_id=record.image_id,
        file_name=record.file_name,
        width=image.width,
        height=image.height,
        boxes=[box for _, box in kept],
        labels=[labels[item.name] for item, _ in kept],
        difficult=[item.difficult for item, _ in kept],
        crowd=[item.crowd for item, _ in kept],
        area=[_area(item, box) for item, box in kept],
    )
    return Checked(image, sample, problems)


def _in_pixels(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def _inside(
    item: Object, width: int, height: int, labels: Mapping[str, int]
) -> tuple[str | None, Box | None]:
    """What is wrong with an object, if anything, and the box to keep, if any."""
    shown = f"{item.name} {[round(v, 2) for v in item.box]}"
    if item.name not in labels:
        return f"unknown class {item.name!r}; known: {', '.join(labels)}", None
    if not all(math.isfinite(v) for v in item.box):
        return f"{shown}: not finite", None
    x1, y1, x2, y2 = item.box
    if x2 <= x1 or y2 <= y1:
        return f"{shown}: empty", None
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return f"{shown}: outside the image of {width}x{height}", None
    if max(abs(a - b) for a, b in zip(inside, item.box, strict=True)) > ROUNDING:
        return f"{shown}: reached out of the image of {width}x{height}", inside
    return None, inside


def _area(item: Object, box: Box) -> float:
    if item.area is not None and math.isfinite(item.area) and item.area >= 0:
        return item.area
    return (box[2] - box[0]) * (box[3] - box[1])
