"""Convert any source into a shard set: plan shards, write them, publish them all at once."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict, Unpack

from pipeline.data.conversion.executor import run_tasks
from pipeline.data.conversion.near_duplicates import ImageHashes, find_near_duplicates
from pipeline.data.conversion.shard_task import RESULT_FILE, ShardResult, plan_shards
from pipeline.data.shards.manifest import (
    MANIFEST,
    Manifest,
    Problem,
    Shard,
    write_manifest,
)
from pipeline.data.shards.writer import index_path
from pipeline.data.sources.record import SourceImage
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.storage.durable import sync_folder
from pipeline.storage.lock import try_lock_file

MAX_SHARD_SAMPLES = 10_000
MAX_SHARD_BYTES = 48 * 2**20
STAGING_FOLDER = ".partial"  # in the folder of the set
MAX_LISTED_PROBLEMS = 20  # of each kind
KINDS_ALLOWED_BY_STRICT = ("near duplicate",)  # not a mistake in the source


class SourceRejected(UserError):
    """The source may not become a shard set as it is; what was written is useless."""


class ConversionOptions(TypedDict, total=False):
    """Options of a conversion, as `stage_shard_set` documents them."""

    source: Required[str]
    category_ids: list[int] | None
    total: int | None
    overwrite: bool
    strict: bool
    shard_samples: int
    shard_bytes: int
    workers: int
    others: Sequence[ImageHashes]


@dataclass(frozen=True)
class StagedShardSet:
    """A shard set that is written completely but not published; ``hashes`` are of its images."""

    out: Path
    manifest: Manifest
    results: list[ShardResult]
    hashes: ImageHashes

    def publish(self) -> Manifest:
        """Move the shards into place, then the manifest, and return it. Raises UserError."""
        with _report_os_errors(self.out):
            _publish(self.results, self.out, self.manifest)
        return self.manifest

    def discard(self) -> None:
        """Delete the written files."""
        _delete_staging(self.out)


def convert(
    images: Iterable[SourceImage],
    problems: Sequence[Problem],
    out: Path,
    name: str,
    split: str,
    classes: Sequence[str],
    **options: Unpack[ConversionOptions],
) -> Manifest:
    """Write a shard set into the folder ``out`` and return its manifest: stage, then publish.

    Raises UserError.
    """
    return stage_shard_set(images, problems, out, name, split, classes, **options).publish()


def stage_shard_set(
    images: Iterable[SourceImage],
    problems: Sequence[Problem],
    out: Path,
    name: str,
    split: str,
    classes: Sequence[str],
    *,
    source: str,
    category_ids: list[int] | None = None,
    total: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    shard_samples: int = MAX_SHARD_SAMPLES,
    shard_bytes: int = MAX_SHARD_BYTES,
    workers: int = 1,
    others: Sequence[ImageHashes] = (),
) -> StagedShardSet:
    """Write the shards of a set, to be published in the folder ``out``.

    ``problems`` are those of the source as a whole, ``source`` is its format. More than one worker
    means Ray; the bytes are the same. Images that look like those of ``others`` are reported as
    leaks. An existing set is replaced only with ``overwrite``, and only when the new one is
    complete. An interrupted conversion leaves its finished shards in a subfolder of ``out``; the
    same call reuses them. Raises SourceRejected if no image is usable or, with ``strict``, if there
    is any problem, and UserError for all other errors, such as an ``out`` in use.
    """
    check_out(out, overwrite)
    if not classes:
        raise UserError(f"{name} {split}: no class names found; give them with --classes")
    progress = Progress(f"converting {split}", total or 0)
    staging = _staging_folder(out)
    with _report_os_errors(out):
        staging.mkdir(parents=True, exist_ok=True)
        with _lock_staging(staging, out):
            tasks = plan_shards(images, classes, staging, shard_samples, shard_bytes)
            results = list(run_tasks(tasks, workers, progress))
        progress.finish()
        hashes = ImageHashes(f"{name} {split}")
        for result in results:
            hashes.file_names += result.file_names
            hashes.hashes += [bytes.fromhex(text) for text in result.image_hashes]
        found = [*problems, *(p for result in results for p in result.problems)]
        found += find_near_duplicates(hashes, others)
        manifest = _make_manifest(results, found, name, split, source, classes, category_ids)
        staged = StagedShardSet(out, manifest, results, hashes)
        try:
            _check_usable(manifest, strict)
        except SourceRejected:
            staged.discard()
            raise
        write_manifest(manifest, staging)  # publishing then needs no more disk space
    return staged


def format_problems(problems: Sequence[Problem]) -> str:
    """Return lines for the terminal: the number of problems and the first ones, for each kind."""
    if not problems:
        return "problems: none"
    lines = []
    for kind, count in sorted(Counter(problem.kind for problem in problems).items()):
        lines.append(f"problems: {count} x {kind}")
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [
            f"  {problem.file}: {problem.reason}" for problem in of_kind[:MAX_LISTED_PROBLEMS]
        ]
        if count > MAX_LISTED_PROBLEMS:
            lines.append(f"  ... and {count - MAX_LISTED_PROBLEMS} more, all in {MANIFEST}")
    return "\n".join(lines)


def _make_manifest(
    results: Sequence[ShardResult],
    problems: list[Problem],
    name: str,
    split: str,
    source: str,
    classes: Sequence[str],
    category_ids: list[int] | None,
) -> Manifest:
    boxes: Counter[int] = Counter()
    content = hashlib.sha256("\n".join(classes).encode())
    shards: list[Shard] = []
    for result in results:
        boxes.update(result.boxes_per_label)
        for sample in result.content_hashes:
            content.update(bytes.fromhex(sample))
        if result.shard:
            published_name = f"shard-{len(shards):06d}.tar"
            shards.append(result.shard.model_copy(update={"name": published_name}))
    return Manifest(
        name=name,
        split=split,
        source=source,
        fingerprint=content.hexdigest(),
        classes=list(classes),
        category_ids=category_ids,
        samples=sum(len(result.file_names) for result in results),
        samples_without_objects=sum(result.samples_without_objects for result in results),
        boxes=sum(boxes.values()),
        boxes_per_class={c: boxes[i] for i, c in enumerate(classes)},
        shards=shards,
        problems=problems,
    )


def check_out(out: Path, overwrite: bool) -> None:
    """Raise UserError unless a shard set may be written into this folder."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a directory")
    foreign = [path.name for path in out.iterdir() if not _belongs_to_shard_set(path)]
    if foreign:
        raise UserError(
            f"--out {out}: contains other files ({sorted(foreign)[0]}); name an empty or new "
            "directory"
        )
    if (out / MANIFEST).exists() and not overwrite:
        raise UserError(
            f"--out {out}: already contains a shard set; replace it with --overwrite or name "
            "another directory"
        )


def _belongs_to_shard_set(path: Path) -> bool:
    return path.name in (MANIFEST, STAGING_FOLDER) or bool(
        re.fullmatch(r"shard-\d+\.(tar|index)", path.name)
    )


@contextlib.contextmanager
def _lock_staging(staging: Path, out: Path) -> Iterator[None]:
    """Lock the folder of finished shards, and delete unfinished ones at the end."""
    with try_lock_file(staging / "lock", 0, required=False) as held:
        if not held:
            raise UserError(f"--out {out}: another conversion is writing there; wait until it ends")
        try:
            yield
        finally:
            for path in staging.iterdir():
                if path.is_dir() and not (path / RESULT_FILE).exists():
                    shutil.rmtree(path, ignore_errors=True)


def _check_usable(manifest: Manifest, strict: bool) -> None:
    """Raise SourceRejected if the set has no samples or, with ``strict``, any problem."""
    title = f"{manifest.name} {manifest.split}"
    faults = [p for p in manifest.problems if p.kind not in KINDS_ALLOWED_BY_STRICT]
    if strict and faults:
        print(format_problems(manifest.problems), file=sys.stderr)
        count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
        raise SourceRejected(
            f"{title}: --strict rejects {count}; the first: {faults[0]}; nothing was written"
        )
    if not manifest.samples:
        first = f"; the first problem: {faults[0]}" if faults else ""
        raise SourceRejected(f"{title}: no usable image{first}; nothing was written")


def _staging_folder(out: Path) -> Path:
    return out.absolute() / STAGING_FOLDER


def _delete_staging(out: Path) -> None:
    """Delete unpublished files, and the folder of the set if it is empty then."""
    shutil.rmtree(_staging_folder(out), ignore_errors=True)
    with contextlib.suppress(OSError):
        out.rmdir()


@contextlib.contextmanager
def _report_os_errors(out: Path) -> Iterator[None]:
    """Turn an OSError into a UserError of one line; delete folders that are left empty."""
    try:
        yield
    except OSError as error:
        finished = any(_staging_folder(out).glob(f"*/{RESULT_FILE}"))
        hint = "; the same command continues from the finished shards" if finished else ""
        raise UserError(
            f"{error.filename or out}: {error.strerror}; no shard set was written{hint}"
        ) from None
    finally:
        for folder in (_staging_folder(out), out):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _publish(results: Sequence[ShardResult], out: Path, manifest: Manifest) -> None:
    """Move the finished shards into place, then the manifest."""
    staging = _staging_folder(out)
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for path in out.glob("shard-*"):
        path.unlink()
    with_shard = (number for number, result in enumerate(results) if result.shard)
    for number, shard in zip(with_shard, manifest.shards, strict=True):
        written = staging / f"{number:06d}" / "shard-000000.tar"
        written.replace(out / shard.name)
        index_path(written).replace(index_path(out / shard.name))
    sync_folder(out)
    (staging / MANIFEST).replace(out / MANIFEST)
    sync_folder(out)
    _delete_staging(out)
