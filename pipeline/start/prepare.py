"""Convert the splits of a data set to shard sets, once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.data.conversion.convert import SourceRejected, StagedShardSet, stage_shard_set
from pipeline.data.conversion.frames.orientation import settle_frame
from pipeline.data.conversion.train_val_split import split_train_val
from pipeline.data.shards.manifest import MANIFEST, Manifest, load_manifest
from pipeline.data.sources.record import Source
from pipeline.errors import UserError
from pipeline.progress import counted
from pipeline.start.find import Data
from pipeline.start.parts import disjoint
from pipeline.start.rules import MIN_IMAGES, val_share
from pipeline.start.splits import Division
from pipeline.storage.durable import write_durably

SPLIT_SEED = 0
SOURCES = "source.sha256"  # beside the shard sets: what they were converted from


class PreparedSets(NamedTuple):
    """The shard sets by use, ``train``, ``val`` and ``test``, as absolute paths or URIs."""

    uris: dict[str, str]
    manifests: dict[str, Manifest]
    notes: list[str]


def prepare_sets(data: Data, division: Division, out: Path) -> PreparedSets:
    """Return the shard sets of a data set, converted into ``out`` if they are not there yet.

    Shard sets are used in place unless validation images are taken from them. An interrupted
    conversion is resumed; a source that has changed is converted again. Raises UserError.
    """
    if data.kind == "shards" and division.val is not None:
        uses = {"train": division.train, "val": division.val, "test": division.test}
        uris = {
            use: str((data.path / data.splits[split]).absolute())
            for use, split in uses.items()
            if split
        }
        manifests = {use: load_manifest(uri) for use, uri in uris.items()}
        check_labels(manifests, data.path)
        return PreparedSets(uris, manifests, [])
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _convert(data, division, out)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written: {error.strerror}; name another folder"
        ) from None


def _convert(data: Data, division: Division, out: Path) -> PreparedSets:
    splits = {"train": division.train, "val": division.val, "test": division.test}
    sources = {
        use: settle_frame(data.source(split)) for use, split in splits.items() if split is not None
    }
    sources, notes = disjoint(sources)
    classes, key = sources["train"].classes, _key(sources)
    uris = {use: str((out / use).absolute()) for use in {"train": 0, "val": 0, **sources}}
    if _recorded(out) != key:
        (out / SOURCES).unlink(missing_ok=True)
        for staged in _stage(_with_val(sources, data.path), classes, uris):
            staged.publish()
        write_durably(out / SOURCES, f"{key}\n".encode())
    kept = {use: uri for use, uri in uris.items() if (Path(uri) / MANIFEST).is_file()}
    manifests = {use: load_manifest(uri) for use, uri in kept.items()}
    check_labels(manifests, data.path)
    if len(kept) < len(uris):
        notes.append("the test part has no labels and is left out")
    return PreparedSets(kept, manifests, notes)


def check_labels(manifests: Mapping[str, Manifest], path: Path) -> None:
    """Raise UserError if there is nothing to learn, or nothing to validate with."""
    remedies = {
        "train": "label them",
        "val": "label them, or remove that part, and it is taken from the training images",
    }
    for use, remedy in remedies.items():
        if use in manifests and not manifests[use].countable_boxes:
            raise UserError(f"{path}: the {use} images have no objects; {remedy}")


def _with_val(sources: Mapping[str, Source], path: Path) -> dict[str, Source]:
    """Return the source of each use; validation images are taken from train if there are none."""
    train = sources["train"]
    images = list(train.images)
    if len(images) < MIN_IMAGES:
        raise UserError(
            f"{path}: only {counted(len(images), 'image')} to train on; at least {MIN_IMAGES} are "
            "needed, one of them to validate, and some hundred are better"
        )
    if "val" in sources:
        return dict(sources)
    try:
        sides = split_train_val(images, 1 - val_share(len(images)), SPLIT_SEED)
    except UserError:
        raise UserError(
            f"{path}: the {len(images)} images look the same, so that no validation images can be "
            "taken from them; add others"
        ) from None
    made = {
        use: replace(train, images=side, total=len(side), problems=list(problems))
        for use, side, problems in zip(("train", "val"), sides, (train.problems, ()), strict=True)
    }
    return made | {use: source for use, source in sources.items() if use != "train"}


def _stage(
    parts: Mapping[str, Source], classes: list[str], uris: Mapping[str, str]
) -> list[StagedShardSet]:
    """Write all sets without publishing them; later ones are searched for images of earlier."""
    staged: list[StagedShardSet] = []
    try:
        for use, part in parts.items():
            out = Path(uris[use])
            try:
                one = stage_shard_set(
                    part.images,
                    part.problems,
                    out,
                    part.name,
                    use,
                    classes,
                    source=part.kind,
                    category_ids=part.category_ids if classes == part.classes else None,
                    total=part.total,
                    overwrite=True,
                    others=[one.hashes for one in staged],
                )
            except SourceRejected:
                if use != "test":
                    raise
                _remove(out)
                continue
            if use == "test" and not one.manifest.countable_boxes:  # the labels are secret
                one.discard()
                _remove(out)
                continue
            staged.append(one)
    except UserError:
        for one in staged:
            one.discard()
        raise
    return staged


def _remove(out: Path) -> None:
    """Delete the manifest of an earlier set: the folder is then no set."""
    (out / MANIFEST).unlink(missing_ok=True)


def _key(sources: Mapping[str, Source]) -> str:
    """Return a digest of everything that the sets depend on."""
    found = hashlib.sha256()
    for use, source in sources.items():
        found.update("\n".join(["", use, *source.classes]).encode())
        for image in source.images:
            found.update(repr(image).encode(errors="replace"))
    return found.hexdigest()


def _recorded(out: Path) -> str | None:
    try:
        return (out / SOURCES).read_text("utf-8").strip()
    except OSError:
        return None
