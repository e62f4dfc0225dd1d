"""The images of each part of a data set: no image is in two, and validation images are drawn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.conversion.image_bytes import prepare_image, read_image
from pipeline.data.conversion.train_val_split import split_train_val
from pipeline.data.shards.problems import HARMLESS_KINDS
from pipeline.data.sources.files import File
from pipeline.data.sources.record import Source, SourceImage
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.progress import counted
from pipeline.reports.doctor.finding import listed
from pipeline.start.rules import MIN_IMAGES, val_share

SPLIT_SEED = 0
Parts = dict[str, list[SourceImage]]  # by use, in the order of the uses


def disjoint(
    sources: Mapping[str, Source], root: Path, held: Collection[str] = ()
) -> tuple[dict[str, Source], list[str]]:
    """Return the sources without images that are also in a later one, and notes about these.

    Images whose file names are ``held`` are in none: they are test images without labels.

    The order of the uses is train, val, test. Images are the same if their file is, or all bytes of
    it: a copy under another name. Without ``val`` in the result, all of its images are test images,
    or those of train. Raises UserError if all of train are test images.
    """
    before: Parts = {use: list(source.images) for use, source in sources.items()}
    notes = []
    if held:
        for use, images in before.items():
            before[use] = [image for image in images if image.file_name not in held]
            if left_out := len(images) - len(before[use]):
                notes.append(
                    f"{counted(left_out, f'{use} image')} also in the test part without labels, so "
                    f"left out of {use}"
                )
    parts = _without_later(before)
    if "val" in parts and before["val"] and not (parts["val"] and parts["train"]):
        other = "train" if parts["val"] else "test"
        notes.append(f"all val images are also in {other}; others are taken from train")
        before.pop("val")
        parts = _without_later(before)
    if before["train"] and not parts["train"]:
        raise UserError(
            f"{root}: all {counted(len(before['train']), 'training image')} are also in the test "
            "part, and test images are never trained on; give images to train on"
        )
    notes += [
        f"{counted(left_out, f'{use} image')} also in another part, so left out of {use}"
        for use in reversed(before)
        if (left_out := len(before[use]) - len(parts[use]))
    ]
    return {use: with_images(sources[use], part) for use, part in parts.items()}, notes


def unused_images(labelled: Mapping[str, File], sources: Mapping[str, Source]) -> list[str]:
    """Return a note on the labelled images that are in no part, given by name."""
    used = {_file(image) for source in sources.values() for image in source.images}
    names = [name for name, file in labelled.items() if repr(file) not in used]
    if not names:
        return []
    folders = sorted({name.rpartition("/")[0] or "." for name in names})
    return [
        f"{counted(len(names), 'labelled image')} in no part, so not used: those in "
        f"{listed(folders)}"
    ]


def with_images(source: Source, images: list[SourceImage]) -> Source:
    """Return the source with these of its images."""
    return replace(source, images=images, total=len(images))


def _without_later(parts: Parts) -> Parts:
    """Return the parts without images whose file or content is also in a later part."""
    parts = _without_later_keys(parts, _file)
    return _without_later_keys(parts, _content_key(parts))


def _without_later_keys(parts: Parts, key: Callable[[SourceImage], str]) -> Parts:
    held: set[str] = set()
    found: Parts = {}
    for use in reversed(parts):
        keys = list(map(key, parts[use]))
        found[use] = [image for image, one in zip(parts[use], keys, strict=True) if one not in held]
        held.update(keys)
    return {use: found[use] for use in parts}


def _file(image: SourceImage) -> str:
    return repr(image.image) if image.image is not None else f"id {image.image_id}"


def _content_key(parts: Parts) -> Callable[[SourceImage], str]:
    """Return a function that gives equal keys for equal bytes in different parts.

    Only images whose size in bytes is found in several parts are read.
    """
    uses: dict[int, set[str]] = defaultdict(set)
    for use, images in parts.items():
        for image in images:
            uses[_size(image)].add(use)

    def key(image: SourceImage) -> str:
        if image.image is None or len(uses[_size(image)]) < 2:
            return _file(image)
        try:
            return hashlib.sha256(read_image(image.image)).hexdigest()
        except ImageError:  # reported when it is converted
            return _file(image)

    return key


def _size(image: SourceImage) -> int:
    return -1 if image.image is None else _bytes(image.image)


def _bytes(image: File | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.size


def with_val(sources: Mapping[str, Source], path: Path) -> dict[str, Source]:
    """Return the source of each use; validation images are taken from train if there are none."""
    train = sources["train"]
    images = list(train.images)
    if images and "val" in sources:
        return dict(sources)
    if not images:
        raise UserError(f"{path}: no images to train on")
    if len(images) < MIN_IMAGES:
        raise UserError(
            f"{path}: only {counted(len(images), 'image')} to train on; at least {MIN_IMAGES} are "
            "needed, one of them to validate, and some hundred are better"
        )
    try:
        ratio = 1 - val_share(len(images))
        sides = split_train_val(images, ratio, SPLIT_SEED, scorable_val=True)
    except UserError:
        raise UserError(
            f"{path}: no validation images can be taken from the {len(images)} images to train on: "
            f"{_obstacle(images)}"
        ) from None
    made = {
        use: replace(train, images=side, total=len(side), problems=list(problems))
        for use, side, problems in zip(("train", "val"), sides, (train.problems, ()), strict=True)
    }
    return made | {use: source for use, source in sources.items() if use != "train"}


def _obstacle(images: Sequence[SourceImage]) -> str:
    """Return why images cannot be split: the first fault of one, or that they look the same."""
    empty = 0
    for image in images:
        record = image.read_record()
        fault = next((p for p in record.problems if p.kind not in HARMLESS_KINDS), None)
        if fault is not None:
            return f"too few can be read and have objects; the first fault: {fault}"
        try:
            if record.image is not None:
                prepare_image(read_image(record.image), record.file_name)
        except ImageError as error:
            return f"too few can be read; the first fault: {record.file_name}: {error}"
        empty += not record.objects
    if empty:
        return f"{empty} of them have no objects; label them"
    return "they look the same; add others"
