"""Turn a record into a sample: decode the image, and check every object against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.checks.objects import check_objects
from pipeline.data.conversion.frames.annotated_size import Fitted, fit_objects
from pipeline.data.conversion.image_bytes import StoredImage, prepare_image, read_image
from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.record import Record
from pipeline.data.transforms.decode import ImageError


class ValidatedRecord(NamedTuple):
    """The usable part of a record; image and sample are None if it is skipped."""

    image: StoredImage | None
    sample: Sample | None
    problems: list[Problem]


def validate_record(
    record: Record, labels: Mapping[str, int], counts: ObjectCounts
) -> ValidatedRecord:
    """Decode the image and keep the valid objects; ``labels`` numbers the classes.

    The objects are added to ``counts``. Raises UserError if the image file is missing.
    """
    problems = list(record.problems)
    lost = sum(item.name in labels for item in record.objects)
    if record.image is None:
        return ValidatedRecord(None, None, _with_lost_objects(problems, lost))
    try:
        data = read_image(record.image)
        image = prepare_image(data, record.file_name, upright=record.upright)
        fitted = fit_objects(record, (image.width, image.height), image.sideways)
    except ImageError as error:
        skipped = Problem(
            file=record.file_name, kind="image skipped", reason=str(error), objects=lost
        )
        return ValidatedRecord(None, None, [*problems, skipped])
    problems += _image_problems(record, image, fitted)
    record = replace(record, objects=fitted.objects)
    kept = check_objects(record, image.width, image.height, labels, counts, problems)
    sample = Sample.make(
        image_id=record.image_id,
        file_name=record.file_name,
        width=image.width,
        height=image.height,
        boxes=[item.box for item in kept],
        labels=[labels[item.name] for item in kept],
        difficult=[item.difficult for item in kept],
        crowd=[item.crowd for item in kept],
        area=[item.area for item in kept if item.area is not None],
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


def _with_lost_objects(problems: list[Problem], lost: int) -> list[Problem]:
    """Return the problems of a skipped image; the one that names it also counts its objects."""
    for at, problem in enumerate(problems):
        if problem.kind == "image skipped":
            problems[at] = problem.model_copy(update={"objects": lost})
            break
    return problems
