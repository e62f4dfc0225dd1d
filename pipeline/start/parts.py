"""The images of each part of a data set: no image is in two, and validation images are drawn."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.data.conversion.image_bytes import read_image
from pipeline.data.sources.files import File
from pipeline.data.sources.record import Source, SourceImage
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.progress import counted

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
