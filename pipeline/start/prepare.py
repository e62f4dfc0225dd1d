"""Convert the splits of a data set to shard sets, once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from pipeline.data.conversion.convert import SourceRejected, StagedShardSet, stage_shard_set
from pipeline.data.conversion.frames.orientation import settle_frame
from pipeline.data.shards.manifest import MANIFEST, Manifest, load_manifest
from pipeline.data.shards.problems import HARMLESS_KINDS, PROBLEMS, Problem
from pipeline.data.sources.record import Source
from pipeline.errors import UserError
from pipeline.progress import counted
from pipeline.start.find import Data, without_options
from pipeline.start.parts import disjoint, unused_images, with_val
from pipeline.start.splits import FLATTERS, Division
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably

MAX_EMPTY = 0.1  # share of images without objects, above which labels are probably missing
USES = ("train", "val", "test")
RECORD = "source.json"


class PreparedSets(NamedTuple):
    """The shard sets by use, ``train``, ``val`` and ``test``, as absolute paths or URIs."""

    uris: dict[str, str]
    manifests: dict[str, Manifest]
    notes: list[str]


class SourceRecord(Document):
    """``source.json`` beside the shard sets: what they were made from, and what is to be said."""

    key: str = Field(description="digest of the source")
    in_place: bool = Field(False, description="the source is shard sets, which are used directly")
    notes: list[str] = Field(default_factory=list, description="about images that are left out")


def prepare_sets(data: Data, division: Division, out: Path) -> PreparedSets:
    """Return the shard sets of a data set, converted into ``out`` if they are not there yet.

    Shard sets are used in place unless validation images are taken from them, or images are in two
    of them. An interrupted conversion is resumed; a source that has changed is converted again.
    Raises UserError.
    """
    folders = [out / use for use in USES] + [out, out.parent]
    made = [folder for folder in folders if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with without_options():
            return _prepare(data, division, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; name another folder with --out"
        ) from None
    except UserError:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


def _prepare(data: Data, division: Division, out: Path) -> PreparedSets:
    splits = dict(zip(USES, (division.train, division.val, division.test), strict=True))
    named = {use: split for use, split in splits.items() if split is not None}
    sources: dict[str, Source] = {}
    there: dict[str, Path] = {}
    notes: list[str] = []
    if data.kind == "shards":
        there = {use: data.path / data.splits[split] for use, split in named.items()}
        hashes = [f"{use} {load_manifest(at).content_hash}" for use, at in there.items()]
        key = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    else:
        sources, notes = _sources(data, named)
        key = _key(sources, data.held)
    record = _recorded(out)
    if record is None or record.key != key:
        (out / RECORD).unlink(missing_ok=True)
        if there:
            sources, notes = _sources(data, named)
        parts, left_out = disjoint(sources, data.path, data.held)
        notes += left_out
        in_place = bool(there) and "val" in there and not notes
        if not in_place:
            notes += _convert(parts, data.path, out)
        record = SourceRecord(key=key, in_place=in_place, notes=notes)
        write_durably(out / RECORD, record.encode())
    made = {use: out / use for use in {"train": 0, "val": 0, **named}}
    uris = {
        use: str(folder.absolute())
        for use, folder in (there if record.in_place else made).items()
        if (folder / MANIFEST).is_file()
    }
    manifests = {use: load_manifest(uri) for use, uri in uris.items()}
    check_labels(manifests, data.path, drawn="val" not in named)
    unused = unused_images(data.labelled, sources)
    return PreparedSets(uris, manifests, [*unused, *record.notes, *set_notes(manifests)])


def _sources(data: Data, splits: Mapping[str, str]) -> tuple[dict[str, Source], list[str]]:
    """Return the sources by use, and a note if the test part is none. Raises UserError."""
    found, notes = {}, []
    for use, split in splits.items():
        try:
            found[use] = settle_frame(data.source(split))
        except UserError as error:
            if use != "test" or data.kind == "coco":  # its images may be in another part
                raise
            reason = str(error).removeprefix(f"{data.path}: ").partition("; ")[0]
            notes += _without_test(reason)
    return found, notes


def _without_test(reason: str) -> list[str]:
    return [f"the test part is left out: {reason}", f"without a test part, {FLATTERS}"]


def _convert(parts: Mapping[str, Source], root: Path, out: Path) -> list[str]:
    """Write the shard sets, and return notes about what was left out."""
    drawn = "val" not in parts
    parts = with_val(parts, root)
    _check_objects(parts, root, drawn)
    staged, notes = _stage(parts, parts["train"].classes, out)
    for one in staged:
        one.publish()
    if len(staged) < len(USES):  # the folder may have that of an earlier source
        (out / "test" / MANIFEST).unlink(missing_ok=True)
    return notes


def set_notes(manifests: Mapping[str, Manifest]) -> list[str]:
    """Return for each set what its conversion lost or found odd, and its images without objects."""
    notes = []
    for use, manifest in manifests.items():
        counts = {k: n for k, n in manifest.problem_counts.items() if k not in HARMLESS_KINDS}
        if counts:
            shown = ", ".join(f"{number} x {kind}" for kind, number in counts.items())
            notes.append(f"{use}: {shown}; listed in {PROBLEMS} of its shard set")
        if empty := manifest.samples_without_objects:
            warning = "warning: " if empty > MAX_EMPTY * manifest.samples else ""
            what = "trained on" if use == "train" else "scored"
            notes.append(
                f"{warning}{empty} of {counted(manifest.samples, f'{use} image')} have no objects, "
                f"and are {what} as such; label any that have"
            )
    return notes


def check_labels(manifests: Mapping[str, Manifest], path: Path, drawn: bool) -> None:
    """Raise UserError if there is nothing to learn, or nothing to validate with.

    ``drawn`` validation images were taken from those to train on.
    """
    for use in ("train", "val"):
        if use in manifests and not manifests[use].countable_boxes:
            raise _without_objects(path, use, drawn)


def _check_objects(parts: Mapping[str, Source], path: Path, drawn: bool) -> None:
    """Raise as `check_labels` before images are converted, if no label is read or faulty."""
    for use in ("train", "val"):
        source = parts[use]
        if not _has_faults(source.problems) and not any(
            record.objects or _has_faults(record.problems)
            for record in (image.read_record() for image in source.images)
        ):
            raise _without_objects(path, use, drawn)


def _has_faults(problems: Sequence[Problem]) -> bool:
    return any(problem.kind not in HARMLESS_KINDS for problem in problems)


def _without_objects(path: Path, use: str, drawn: bool) -> UserError:
    remedy = "label them"
    if use == "val":
        remedy += ", or remove that part, and it is taken from the training images"
        if drawn:
            remedy = "they were taken from the training images; label more of these"
    return UserError(f"{path}: the {use} images have no objects; {remedy}")


def _stage(
    parts: Mapping[str, Source], classes: list[str], out: Path
) -> tuple[list[StagedShardSet], list[str]]:
    """Write all sets without publishing them; later ones are searched for images of earlier.

    The test part is left out if it has no usable labels, with a note.
    """
    staged: list[StagedShardSet] = []
    notes = []
    try:
        for use, part in parts.items():
            try:
                one = stage_shard_set(
                    part.images,
                    part.problems,
                    out / use,
                    part.name,
                    use,
                    classes,
                    source=part.kind,
                    category_ids=part.category_ids if classes == part.classes else None,
                    total=part.total,
                    overwrite=True,
                    others=[one.hashes for one in staged],
                )
            except SourceRejected as error:
                if use != "test":
                    raise
                notes += _without_test(str(error).removesuffix("; nothing was written"))
                continue
            if use == "test" and not one.manifest.countable_boxes:  # the labels are secret
                one.discard()
                notes += _without_test("it has no labels")
                continue
            staged.append(one)
    except UserError:
        for one in staged:
            one.discard()
        raise
    return staged, notes


def _key(sources: Mapping[str, Source], held: Collection[str]) -> str:
    """Return a digest of everything that the sets depend on."""
    found = hashlib.sha256("\n".join(sorted(held)).encode())
    for use, source in sources.items():
        found.update("\n".join(["", use, *source.classes]).encode())
        for image in source.images:
            found.update(repr(image).encode(errors="replace"))
    return found.hexdigest()


def _recorded(out: Path) -> SourceRecord | None:
    try:
        return SourceRecord.parse((out / RECORD).read_bytes(), RECORD)
    except (OSError, DocumentError):
        return None
