"""Shard sets for cross-validation: each part of one set, and the samples of all other parts.

Images are not encoded again and samples keep everything, so that a fold differs from the set only
in its choice of samples. The parts depend on the images alone. Near duplicates, and tiles of one
picture, are in one part: a training has then not seen the images that it is scored on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.comparison.cells import Split
from pipeline.config import Config
from pipeline.data.conversion.convert import MAX_SHARD_BYTES, MAX_SHARD_SAMPLES
from pipeline.data.conversion.near_duplicates import group_near_duplicates, image_hash
from pipeline.data.conversion.object_staging import upload_folder
from pipeline.data.loading.prefetch_plan import open_shards
from pipeline.data.shards.image_classes import classes_file, encode_image
from pipeline.data.shards.manifest import (
    MANIFEST,
    Manifest,
    load_manifest,
    local_folder,
    write_manifest,
)
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.shards.shard_table import IMAGE_CLASSES, Shard
from pipeline.data.shards.verify import verify
from pipeline.data.shards.writer import ShardWriter, index_path
from pipeline.data.transforms.decode import ImageError, decode_image, image_format
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.storage.folder import join
from pipeline.storage.redact import mask
from pipeline.storage.remote import is_remote

FOLDER = "folds"
_USES = ("train", "val")


class _Part(NamedTuple):
    """The shards of one part, in a folder, with what a manifest says about them."""

    folder: Path
    shards: list[Shard]
    samples_without_objects: int
    crowds: int
    boxes: Counter[int]  # by label
    image_classes: bytes


def fold_splits(config: Config, manifest: Manifest, folds: int, uri: str) -> list[Split]:
    """Return the sets of each fold of ``data.train``; make those that ``uri`` lacks.

    ``uri`` is the folder of the comparison. Raises UserError if there are fewer different images
    than folds, a part has no object, or a sample is damaged, and OutageError.
    """
    if "?" in uri and "://" in uri:
        raise UserError(
            f"ray.storage {mask(uri)}: --folds stores shard sets there, whose addresses have no "
            "options after ?; set them in the environment"
        )
    base = join(uri, f"{FOLDER}/{folds}-{manifest.content_hash[:12]}")
    sets = [{use: join(base, f"{k}/{use}") for use in _USES} for k in range(1, folds + 1)]
    if not all(_is_intact(each) for fold in sets for each in fold.values()):
        _write_sets(config, folds, base, sets)
    for number, fold in enumerate(sets, 1):
        if not load_manifest(fold["val"]).countable_boxes:
            raise UserError(
                f"--folds {folds}: part {number} of data.train has no object that could be scored; "
                "give fewer folds"
            )
    return [
        Split(
            content=(_content(fold["train"]), _content(fold["val"])),
            number=number,
            params={f"data.{use}": fold[use] for use in _USES},
        )
        for number, fold in enumerate(sets, 1)
    ]


def partition(hashes: Sequence[bytes], pictures: Sequence[str], folds: int) -> list[list[int]]:
    """Return the samples of each part, ascending, given their image hashes and pictures.

    Samples with near hashes, or of one picture, are together. Groups are taken in the order of a
    digest of their hashes; each goes to the part with the fewest samples. Raises UserError if
    there are fewer groups than parts.
    """
    groups = _groups(hashes, pictures)
    if len(groups) < folds:
        raise UserError(
            f"--folds {folds}: data.train has {len(hashes)} samples, of {len(groups)} images that "
            "look different; each part needs one, so give fewer folds"
        )

    def key(group: Sequence[int]) -> tuple[bytes, int]:
        return min((hashlib.sha256(hashes[index]).digest(), index) for index in group)

    parts: list[list[int]] = [[] for _ in range(folds)]
    for group in sorted(groups, key=key):
        min(parts, key=len).extend(group)
    return [sorted(part) for part in parts]


def _groups(hashes: Sequence[bytes], pictures: Sequence[str]) -> list[list[int]]:
    """Return all samples in groups that a split must not separate."""
    first = list(range(len(hashes)))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    by_picture: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        by_picture[picture].append(index)
    for together in (*group_near_duplicates(hashes), *by_picture.values()):
        for index in together[1:]:
            low, high = sorted((root(together[0]), root(index)))
            first[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(hashes)):
        groups[root(index)].append(index)
    return list(groups.values())


def _is_intact(uri: str) -> bool:
    try:
        return not verify(uri).faults
    except UserError:
        return False


def _content(uri: str) -> str:
    return load_manifest(uri).content_hash


def _write_sets(config: Config, folds: int, base: str, sets: Sequence[dict[str, str]]) -> None:
    """Write all sets; parts are written once and linked where the file system has links."""
    shards = open_shards(str(config.data.train), config)
    local = None if is_remote(base) else local_folder(base)
    if local is not None:
        shutil.rmtree(local, ignore_errors=True)
        local.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="folds-", dir=local and local.parent) as folder:
        work = Path(folder)
        parts = _write_parts(shards, partition(*_describe(shards), folds), work)
        for number, fold in enumerate(sets):
            others = [part for k, part in enumerate(parts) if k != number]
            for use, chosen in (("train", others), ("val", [parts[number]])):
                made = work / "sets" / f"{number + 1}" / use
                name = f"{shards.manifest.name}-fold{number + 1}of{folds}"
                _assemble(shards.manifest, chosen, made, name, use)
                if local is None:
                    upload_folder(made, fold[use], MANIFEST)
        if local is not None:
            (work / "sets").rename(local)


def _describe(shards: ShardSet) -> tuple[list[bytes], list[str]]:
    """Return the image hash and the picture of each sample. Raises UserError if one is damaged."""
    hashes, pictures = [], []
    progress = Progress("comparing", len(shards))
    for index in range(len(shards)):
        raw = shards.read(index)
        try:
            sample = parse_sample(raw, len(shards.manifest.classes))
            hashes.append(image_hash(decode_image(raw.image)))
        except ImageError as error:
            raise UserError(
                f"data.train ({mask(shards.uri)}): {raw.location}: {error}; check the set with "
                "python -m jobs.shards verify"
            ) from None
        pictures.append(sample.tile.image_id if sample.tile else sample.image_id)
        progress.advance()
    progress.finish()
    return hashes, pictures


def _write_parts(shards: ShardSet, parts: Sequence[Sequence[int]], work: Path) -> list[_Part]:
    written, first_key = [], 0
    for number, indices in enumerate(parts):
        folder = work / f"part-{number}"
        folder.mkdir()
        writer = ShardWriter(folder, MAX_SHARD_SAMPLES, MAX_SHARD_BYTES, first_key)
        empty, crowds, boxes, classes = 0, 0, Counter[int](), bytearray()
        for index in indices:
            raw = shards.read(index)
            sample = parse_sample(raw, len(shards.manifest.classes))
            writer.add(image_format(raw.image) or "png", bytes(raw.image), raw.json)
            empty += not sample.boxes
            crowds += sum(sample.crowd)
            boxes.update(sample.labels)
            classes += encode_image(sample.object_labels(), len(shards.manifest.classes))
        written.append(_Part(folder, writer.close(), empty, crowds, boxes, bytes(classes)))
        first_key += len(indices)  # keys are unique in all parts together
    return written


def _assemble(source: Manifest, parts: Sequence[_Part], folder: Path, name: str, use: str) -> None:
    """Make a set of the shards of some parts."""
    folder.mkdir(parents=True)
    shards: list[Shard] = []
    for part in parts:
        for shard in part.shards:
            renamed = shard.model_copy(update={"name": f"shard-{len(shards):06d}.tar"})
            for path, target in (
                (part.folder / shard.name, folder / renamed.name),
                (index_path(part.folder / shard.name), index_path(folder / renamed.name)),
            ):
                _link(path, target)
            shards.append(renamed)
    boxes = sum((part.boxes for part in parts), Counter[int]())
    image_classes = b"".join(part.image_classes for part in parts)
    (folder / IMAGE_CLASSES).write_bytes(image_classes)
    content = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())
    manifest = Manifest(
        name=name,
        split=use,
        source=source.source,
        fingerprint=content.hexdigest(),
        classes=source.classes,
        category_ids=source.category_ids,
        samples=sum(shard.samples for shard in shards),
        samples_without_objects=sum(part.samples_without_objects for part in parts),
        boxes=boxes.total(),
        boxes_per_class={name: boxes[label] for label, name in enumerate(source.classes)},
        shards=shards,
        problem_counts={},
        crowd_boxes=sum(part.crowds for part in parts),
        renamed=source.renamed,
        tiling=source.tiling,
        image_classes=classes_file(image_classes),
    )
    write_manifest(manifest, folder)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)
