"""From any source to a shard set: shards are planned, written, and published all at once."""

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
from typing import Any

from pipeline.data.conversion.executor import run_tasks
from pipeline.data.conversion.near_duplicates import Looks, alike
from pipeline.data.conversion.shard_task import DONE, ShardResult, plan_shards
from pipeline.data.shards.manifest import (
    MANIFEST,
    Manifest,
    Problem,
    Shard,
    write_manifest,
)
from pipeline.data.shards.writer import index_path
from pipeline.data.sources.record import Item
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.storage.durable import sync_folder
from pipeline.storage.lock import try_lock_file

SHARD_SAMPLES = 10_000
SHARD_BYTES = 48 * 2**20
PARTIAL = ".partial"
LISTED = 20
TOLD = ("near duplicate",)  # no mistake in the source, so that --strict lets it pass


class Refused(UserError):
    """The source, as it is, may not become a set: what was written is of no use."""


@dataclass(frozen=True)
class Built:
    """A set whose shards are written and which may be published; ``looks`` are its pictures'."""

    out: Path
    manifest: Manifest
    results: list[ShardResult]
    looks: Looks

    def publish(self) -> Manifest:
        """Put the shards in place, the manifest last. Raises UserError."""
        with _disk(self.out):
            _publish(self.results, self.out, self.manifest)
        return self.manifest

    def drop(self) -> None:
        """Delete what was written."""
        _clear(self.out)


def convert(
    records: Iterable[Item],
    problems: Sequence[Problem],
    out: Path,
    name: str,
    split: str,
    classes: Sequence[str],
    **options: Any,
) -> Manifest:
    """Write a shard set into the folder ``out`` and return its manifest: build, then publish."""
    return build(records, problems, out, name, split, classes, **options).publish()


def build(
    records: Iterable[Item],
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
    shard_samples: int = SHARD_SAMPLES,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 1,
    others: Sequence[Looks] = (),
) -> Built:
    """Write the shards of a set, to be published in the folder ``out``.

    ``problems`` are those of the source as a whole. More than one worker means Ray; the bytes are
    the same. Pictures that look like those of ``others`` are reported as leaks. An existing set is
    replaced only with ``overwrite``, and only once the new one is whole. A conversion that was
    interrupted leaves its finished shards below ``out``, and the same call takes them over. Raises
    Refused where nothing is left to write or, with ``strict``, anything is wrong, and UserError for
    all else, such as an ``out`` in use.
    """
    check_out(out, overwrite)
    if not classes:
        raise UserError(f"{name} {split}: no class names found; give them with --classes")
    progress = Progress(f"converting {split}", total or 0)
    partial = _partial(out)
    with _disk(out):
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial, out):
            tasks = plan_shards(records, classes, partial, shard_samples, shard_bytes)
            results = list(run_tasks(tasks, workers, progress))
        progress.finish()
        looks = Looks(f"{name} {split}")
        for result in results:
            looks.names += result.names
            looks.hashes += [bytes.fromhex(look) for look in result.looks]
        found = [*problems, *(p for result in results for p in result.problems)]
        found += near_duplicates(looks, others)
        manifest = _manifest(results, found, name, split, source, classes, category_ids)
        built = Built(out, manifest, results, looks)
        try:
            _refuse(manifest, strict)
        except Refused:
            built.drop()
            raise
        write_manifest(manifest, partial)  # so that publishing needs no more room
    return built


def report(problems: Sequence[Problem]) -> str:
    """What went wrong, in lines for a person: counts, then the first of each kind."""
    if not problems:
        return "problems: none"
    lines = []
    for kind, count in sorted(Counter(problem.kind for problem in problems).items()):
        lines.append(f"problems: {count} x {kind}")
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [f"  {problem.file}: {problem.reason}" for problem in of_kind[:LISTED]]
        if count > LISTED:
            lines.append(f"  ... and {count - LISTED} more, all in {MANIFEST}")
    return "\n".join(lines)


def near_duplicates(own: Looks, others: Sequence[Looks]) -> list[Problem]:
    """Pictures that look like others of their set, or like one of another split."""
    found = []
    for group in alike(own.hashes):
        first = own.names[group[0]]
        for index in group[1:]:
            reason = f"looks like {first}"
            found.append(Problem(file=own.names[index], kind="near duplicate", reason=reason))
    for other in others:
        for group in alike([*own.hashes, *other.hashes]):
            there = [i - len(own.names) for i in group if i >= len(own.names)]
            for index in group:
                if index < len(own.names) and there:
                    reason = f"looks like {other.names[there[0]]} of {other.title}"
                    found.append(Problem(file=own.names[index], kind="leak", reason=reason))
    return found


def _manifest(
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
        boxes.update(result.boxes)
        for sample in result.contents:
            content.update(bytes.fromhex(sample))
        if result.shard:
            name_now = f"shard-{len(shards):06d}.tar"
            shards.append(result.shard.model_copy(update={"name": name_now}))
    return Manifest(
        name=name,
        split=split,
        source=source,
        fingerprint=content.hexdigest(),
        classes=list(classes),
        category_ids=category_ids,
        samples=sum(len(result.names) for result in results),
        samples_without_objects=sum(result.empty for result in results),
        boxes=sum(boxes.values()),
        boxes_per_class={c: boxes[i] for i, c in enumerate(classes)},
        shards=shards,
        problems=problems,
    )


def check_out(out: Path, overwrite: bool) -> None:
    """Raise UserError unless a set may be written there."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    foreign = [path.name for path in out.iterdir() if not _ours(path)]
    if foreign:
        raise UserError(
            f"--out {out}: holds other files ({sorted(foreign)[0]}); name an empty or new folder"
        )
    if (out / MANIFEST).exists() and not overwrite:
        raise UserError(
            f"--out {out}: holds a shard set already; --overwrite replaces it, or name another"
        )


def _ours(path: Path) -> bool:
    return path.name in (MANIFEST, PARTIAL) or bool(
        re.fullmatch(r"shard-\d+\.(tar|index)", path.name)
    )


@contextlib.contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Hold the folder of finished shards; it stays where any are left by an interruption."""
    with try_lock_file(partial / "lock", 0, required=False) as held:
        if not held:
            raise UserError(f"--out {out}: another conversion is writing there")
        try:
            yield
        finally:
            for path in partial.iterdir():  # what is unfinished
                if path.is_dir() and not (path / DONE).exists():
                    shutil.rmtree(path, ignore_errors=True)


def _refuse(manifest: Manifest, strict: bool) -> None:
    what = f"{manifest.name} {manifest.split}"
    wrong = [problem for problem in manifest.problems if problem.kind not in TOLD]
    if strict and wrong:
        print(report(manifest.problems), file=sys.stderr)
        raise Refused(
            f"{what}: {len(wrong)} problems and --strict; the first: {wrong[0]}; "
            "nothing was written"
        )
    if not manifest.samples:
        first = f"; the first problem: {wrong[0]}" if wrong else ""
        raise Refused(f"{what}: no image could be taken{first}; nothing was written")


def _partial(out: Path) -> Path:
    return out.absolute() / PARTIAL


def _clear(out: Path) -> None:
    """Delete what is unpublished; and the folder, if it holds nothing else."""
    shutil.rmtree(_partial(out), ignore_errors=True)
    with contextlib.suppress(OSError):
        out.rmdir()


@contextlib.contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Turn errors of the file system into one line; leave no empty folders behind."""
    try:
        yield
    except OSError as error:
        finished = any(_partial(out).glob(f"*/{DONE}"))
        left = "; the same command goes on from there" if finished else ""
        raise UserError(
            f"{error.filename or out}: {error.strerror}; no set was written{left}"
        ) from None
    finally:
        for folder in (_partial(out), out):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _publish(results: Sequence[ShardResult], out: Path, manifest: Manifest) -> None:
    """Put the finished shards in place, the manifest last."""
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for path in out.glob("shard-*"):
        path.unlink()
    made = (number for number, result in enumerate(results) if result.shard)
    for number, shard in zip(made, manifest.shards, strict=True):
        written = _partial(out) / f"{number:06d}" / "shard-000000.tar"
        written.replace(out / shard.name)
        index_path(written).replace(index_path(out / shard.name))
    sync_folder(out)
    (_partial(out) / MANIFEST).replace(out / MANIFEST)
    sync_folder(out)
    _clear(out)
