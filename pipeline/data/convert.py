"""From the records of any source to a shard set: checks, mends, counts and names what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.data.decode import ImageError
from pipeline.data.images import read_image, stored_image
from pipeline.data.manifest import (
    MANIFEST,
    Manifest,
    Problem,
    sync_folder,
    write_manifest,
)
from pipeline.data.records import Object, Record
from pipeline.data.sample import Box, Sample
from pipeline.data.shards import ShardWriter, index_path
from pipeline.errors import UserError

SHARD_SAMPLES = 10_000
SHARD_BYTES = 48 * 2**20
PARTIAL = ".partial"
# Annotation files round; what is less than this outside the image is not worth a report.
ROUNDING = 0.05
LISTED = 20


def convert(
    records: Iterable[Record],
    problems: list[Problem],
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
) -> Manifest:
    """Write a shard set into the folder ``out`` and return its manifest.

    ``problems`` takes in what is found wrong; the source may add to it while it is read. An
    existing set is replaced only with ``overwrite``, and only once the new one is whole. Raises
    UserError: an ``out`` in use, nothing left to write, or, with ``strict``, any problem.
    """
    _check_out(out, overwrite)
    if not classes:
        raise UserError(f"{name} {split}: no class names found; give them with --classes")
    partial = out / PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tally = _Tally(classes)
        writer = ShardWriter(partial, shard_samples, shard_bytes)
        for record in _progress(records, total):
            _add(record, writer, tally, problems)
        shards = writer.close()
        _refuse(writer.samples, problems, strict, f"{name} {split}")
        manifest = Manifest(
            name=name,
            split=split,
            source=source,
            fingerprint=tally.hash.hexdigest(),
            classes=list(classes),
            category_ids=category_ids,
            samples=writer.samples,
            samples_without_objects=tally.empty,
            boxes=sum(tally.boxes.values()),
            boxes_per_class={c: tally.boxes[i] for i, c in enumerate(classes)},
            shards=shards,
            problems=problems,
        )
        _publish(partial, out, manifest)
        return manifest
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; nothing was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: it holds a set, the new or the old one
            out.rmdir()


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


class _Tally:
    """Running counts and the fingerprint of what was taken from the source."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.labels = {name: i for i, name in enumerate(classes)}
        self.boxes: Counter[int] = Counter()
        self.empty = 0
        self.ids: set[str] = set()
        self.hash = hashlib.sha256("\n".join(classes).encode())

    def add(self, sample: Sample, image: bytes, json: bytes) -> None:
        self.boxes.update(sample.labels)
        self.empty += not sample.boxes
        self.hash.update(hashlib.sha256(image).digest() + hashlib.sha256(json).digest())


def _add(record: Record, writer: ShardWriter, tally: _Tally, problems: list[Problem]) -> None:
    try:
        if record.image_id in tally.ids:
            raise ImageError(f"the source lists {record.image_id} twice; the first one is kept")
        tally.ids.add(record.image_id)
        image = stored_image(read_image(record.image), record.file_name, record.size)
    except ImageError as error:
        problems.append(Problem(file=record.file_name, kind="image skipped", reason=str(error)))
        return
    for note in image.notes:
        problems.append(Problem(file=record.file_name, kind="mended", reason=note))
    kept = []
    for item in record.objects:
        problem, box = _checked(item, image.width, image.height, tally.labels)
        if problem:
            kind = "box clipped" if box else "box dropped"
            problems.append(Problem(file=record.annotation, kind=kind, reason=problem))
        if box:
            kept.append((item, box))
    sample = Sample(
        image_id=record.image_id,
        file_name=record.file_name,
        width=image.width,
        height=image.height,
        boxes=[box for _, box in kept],
        labels=[tally.labels[item.name] for item, _ in kept],
        difficult=[item.difficult for item, _ in kept],
        crowd=[item.crowd for item, _ in kept],
        area=[_area(item, box) for item, box in kept],
    )
    json = sample.to_json()
    writer.add(image.extension, image.data, json)
    tally.add(sample, image.data, json)


def _checked(
    item: Object, width: int, height: int, labels: dict[str, int]
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


def _check_out(out: Path, overwrite: bool) -> None:
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
    known = (MANIFEST, f".{MANIFEST}.partial", PARTIAL)
    return path.name in known or bool(re.fullmatch(r"shard-\d+\.(tar|index)", path.name))


def _refuse(samples: int, problems: Sequence[Problem], strict: bool, what: str) -> None:
    if strict and problems:
        print(report(problems), file=sys.stderr)
        raise UserError(
            f"{what}: {len(problems)} problems and --strict; the first: {problems[0]}; "
            "nothing was written"
        )
    if not samples:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise UserError(f"{what}: no image could be taken{first}; nothing was written")


def _publish(partial: Path, out: Path, manifest: Manifest) -> None:
    """Put the finished shards in place, the manifest last."""
    (out / MANIFEST).unlink(missing_ok=True)
    sync_folder(out)
    for path in out.glob("shard-*"):
        path.unlink()
    for shard in manifest.shards:
        for path in (partial / shard.name, index_path(partial / shard.name)):
            path.replace(out / path.name)
    write_manifest(manifest, out)


def _progress(records: Iterable[Record], total: int | None) -> Iterator[Record]:
    """The same records, with a line on stderr every few seconds."""
    began = said = time.monotonic()
    for count, record in enumerate(records, 1):
        yield record
        now = time.monotonic()
        if now - said >= 2:
            said, rate = now, count / (now - began)
            left = f", {max(total - count, 0) / rate:.0f} s left" if total else ""
            print(f"  {count}/{total or '?'} images, {rate:.0f}/s{left}", file=sys.stderr)
