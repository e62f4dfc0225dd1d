"""Turn a record into a sample: check every box against the decoded image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from pipeline.data.conversion.frames.annotated_size import Fitted, fit_objects
from pipeline.data.conversion.image_bytes import StoredImage, prepare_image, read_image
from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.shards.sample import Box, Sample
from pipeline.data.sources.record import Object, Record
from pipeline.data.transforms.decode import ImageError

# Annotation files round; a box may reach this far outside the image without being reported.
ROUNDING_PIXELS = 0.05


class ValidatedRecord(NamedTuple):
    """The usable part of a record; image and sample are None if it is skipped."""

    image: StoredImage | None
    sample: Sample | None
    problems: list[Problem]


def validate_record(record: Record, labels: Mapping[str, int]) -> ValidatedRecord:
    """Decode the image and keep the valid boxes; ``labels`` numbers the classes.

    Raises UserError if the image file is missing.
    """
    problems = list(record.problems)
    if record.image is None:
        return ValidatedRecord(None, None, problems)
    try:
        data = read_image(record.image)
        image = prepare_image(data, record.file_name, upright=record.upright)
        fitted = fit_objects(record, (image.width, image.height), image.sideways)
    except ImageError as error:
        reason = str(error)
        problems.append(Problem(file=record.file_name, kind="image skipped", reason=reason))
        return ValidatedRecord(None, None, problems)
    problems += _image_problems(record, image, fitted)
    kept = []
    for item in fitted.objects:
        if record.relative:
            item = item._replace(box=_to_pixels(item.box, image.width, image.height))
        fault, box = _clip_to_image(item, image.width, image.height, labels)
        if fault:
            kind: Literal["box clipped", "box dropped"] = "box clipped" if box else "box dropped"
            problems.append(Problem(file=record.annotation_file, kind=kind, reason=fault))
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
    return ValidatedRecord(image, sample, problems)


def _image_problems(record: Record, image: StoredImage, fitted: Fitted) -> Iterator[Problem]:
    """Yield what is to be said of an image that is used."""
    notes = [*image.notes, *filter(None, [fitted.note])]
    rows: list[tuple[ProblemKind, str]] = [("note", note) for note in notes]
    if fitted.repair:
        rows.append(("repaired", fitted.repair))
    if image.flat:
        reason = "the image is almost of one colour; was it saved in another depth?"
        rows.append(("suspicious" if fitted.objects else "note", reason))
    for kind, reason in rows:
        yield Problem(file=record.file_name, kind=kind, reason=reason)


def _to_pixels(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def _clip_to_image(
    item: Object, width: int, height: int, labels: Mapping[str, int]
) -> tuple[str | None, Box | None]:
    """Return the fault of an object, if any, and the box to keep, if any."""
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
    if max(abs(a - b) for a, b in zip(inside, item.box, strict=True)) > ROUNDING_PIXELS:
        return f"{shown}: reaches outside the image of {width}x{height}", inside
    return None, inside


def _area(item: Object, box: Box) -> float:
    if item.area is not None and math.isfinite(item.area) and item.area >= 0:
        return item.area
    return (box[2] - box[0]) * (box[3] - box[1])
