"""Convert any source into a shard set: plan shards, write them, publish them all at once.

The results of the shards are read one at a time, and what grows with the images is on disk.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict, Unpack

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.checks.no_classes import reason_without_classes
from pipeline.data.conversion.checks.verdict import fault_of_set, whole_source_problems
from pipeline.data.conversion.executor import run_tasks
from pipeline.data.conversion.image_hashes import ImageHashes
from pipeline.data.conversion.near_duplicates import find_near_duplicates
from pipeline.data.conversion.shard_task import ShardResult, plan_shards
from pipeline.data.conversion.staging import Staging, open_staging
from pipeline.data.shards.image_classes import ImageClassesWriter
from pipeline.data.shards.manifest import Manifest, Tiling
from pipeline.data.shards.problems import HARMLESS_KINDS, PROBLEMS, Problem, ProblemWriter
from pipeline.data.shards.shard_table import IMAGE_CLASSES, ShardTable
from pipeline.data.sources.record import SourceImage
from pipeline.errors import UserError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.data.conversion.object_staging import ObjectStaging

MAX_SHARD_SAMPLES = 10_000
MAX_SHARD_BYTES = 48 * 2**20


class SourceRejected(UserError):
    """The source may not become a shard set as it is; what was written is useless."""


class ConversionOptions(TypedDict, total=False):
    """Options of a conversion, as `stage_shard_set` documents them."""

    source: Required[str]
    category_ids: list[int] | None
    total: int | None
    overwrite: bool
    strict: bool
    allowed: Collection[str]
    renamed: dict[str, str]
    tiling: Tiling | None
    shard_samples: int
    shard_bytes: int
    workers: int
    others: Sequence[ImageHashes]


@dataclass(frozen=True)
class StagedShardSet:
    """A shard set that is written completely but not published; ``hashes`` are of its images."""

    out: Path | str
    manifest: Manifest
    counts: ObjectCounts
    problems: ProblemWriter
    hashes: ImageHashes
    staging: Staging | ObjectStaging
    numbers: array[int]  # of the tasks that wrote a shard

    def publish(self) -> Manifest:
        """Move the shards into place, then the manifest, and return it. Raises UserError."""
        self.hashes.close()
        with self.staging.report_errors():
            folders = (self.staging.shard_folder(number) for number in self.numbers)
            self.staging.publish(self.manifest, folders)
        return self.manifest

    def discard(self) -> None:
        """Delete the written files."""
        self.hashes.close()
        self.staging.discard()


def convert(
    images: Iterable[SourceImage],
    problems: Sequence[Problem],
    out: Path | str,
    name: str,
    split: str,
    classes: Sequence[str],
    **options: Unpack[ConversionOptions],
) -> Manifest:
    """Write a shard set into a folder or to a URI, and return its manifest: stage, then publish.

    Raises UserError.
    """
    return stage_shard_set(images, problems, out, name, split, classes, **options).publish()


def stage_shard_set(
    images: Iterable[SourceImage],
    problems: Sequence[Problem],
    out: Path | str,
    name: str,
    split: str,
    classes: Sequence[str],
    *,
    source: str,
    category_ids: list[int] | None = None,
    total: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    allowed: Collection[str] = (),
    renamed: dict[str, str] | None = None,
    tiling: Tiling | None = None,
    shard_samples: int = MAX_SHARD_SAMPLES,
    shard_bytes: int = MAX_SHARD_BYTES,
    workers: int = 1,
    others: Sequence[ImageHashes] = (),
) -> StagedShardSet:
    """Write the shards of a set, to be published in the folder or at the URI ``out``.

    ``problems`` are those of the source as a whole, ``source`` is its format. More than one worker
    means Ray; the bytes are the same. Images that look like those of ``others`` are reported as
    leaks. An existing set is replaced only with ``overwrite``, and only when the new one is
    complete. An interrupted conversion leaves its finished shards in a subfolder of ``out``; the
    same call reuses them. ``renamed`` is recorded: new names of classes of the source. With
    ``tiling``, images larger than a tile become several samples. Raises SourceRejected if no image
    or no object is usable or, with ``strict``, if there is any problem that is not harmless and not
    of the kinds ``allowed``, and UserError for all other errors, such as an ``out`` in use.
    """
    staging = open_staging(out)
    staging.check(overwrite)
    if not classes:
        raise UserError(f"{name} {split}: {reason_without_classes(images)}")
    progress = Progress(f"converting {split}", total or 0)
    with staging.report_errors():
        try:
            with staging.hold():
                summary = _Summary(classes, staging.work, f"{name} {split}")
                summary.problems.add(problems)
                tasks = plan_shards(
                    images, classes, staging.shard_folder, shard_samples, shard_bytes, tiling
                )
                for number, written in enumerate(run_tasks(tasks, workers, progress)):
                    summary.add(number, written.read())
                progress.finish()
                summary.problems.add(find_near_duplicates(summary.hashes, others))
                summary.check_whole_source(name)
                summary.problems.close()
                manifest = summary.manifest(
                    name, split, source, category_ids, renamed or {}, tiling
                )
                _check_usable(manifest, summary, strict, {*HARMLESS_KINDS, *allowed})
                staging.store(manifest)
        except SourceRejected:
            summary.hashes.close()
            staging.discard()
            raise
    return StagedShardSet(
        out,
        manifest,
        summary.counts,
        summary.problems,
        summary.hashes,
        staging,
        summary.numbers,
    )


class _Summary:
    """What the manifest has of all shards, added up in their order."""

    def __init__(self, classes: Sequence[str], work: Path, title: str) -> None:
        self.classes = list(classes)
        self.problems = ProblemWriter(work / PROBLEMS)
        self.hashes = ImageHashes(title, work)
        self.image_classes = ImageClassesWriter(work / IMAGE_CLASSES)
        self.shards, self.numbers = ShardTable(), array("q")
        self._samples = self._samples_without_objects = 0
        self._boxes: Counter[int] = Counter()  # by label
        self.counts = ObjectCounts()
        self._content = hashlib.sha256("\n".join(classes).encode())

    def add(self, number: int, result: ShardResult) -> None:
        """Add the result of a task. Raises OSError."""
        self.problems.add(result.problems)
        self.hashes.extend(result.file_names, list(map(bytes.fromhex, result.image_hashes)))
        self.image_classes.add(bytes.fromhex(result.image_classes))
        self._boxes.update(result.boxes_per_label)
        self.counts.update(result.counts)
        self._samples += len(result.content_hashes)
        self._samples_without_objects += result.samples_without_objects
        for sample in result.content_hashes:
            self._content.update(bytes.fromhex(sample))
        if result.shard:
            name = f"shard-{len(self.shards):06d}.tar"
            self.shards.add({**result.shard.model_dump(), "name": name})
            self.numbers.append(number)

    @property
    def boxes_per_class(self) -> dict[str, int]:
        """Return the number of boxes of each class."""
        return {name: self._boxes[label] for label, name in enumerate(self.classes)}

    def check_whole_source(self, name: str) -> None:
        """Add the problems of all objects taken together. Raises OSError."""
        causes = self.problems.causes
        self.problems.add(
            whole_source_problems(name, self.classes, self.boxes_per_class, self.counts, causes)
        )

    def manifest(
        self,
        name: str,
        split: str,
        source: str,
        category_ids: list[int] | None,
        renamed: dict[str, str],
        tiling: Tiling | None,
    ) -> Manifest:
        """Return the manifest of the shards."""
        return Manifest(
            name=name,
            split=split,
            source=source,
            fingerprint=self._content.hexdigest(),
            classes=self.classes,
            category_ids=category_ids,
            samples=self._samples,
            samples_without_objects=self._samples_without_objects,
            boxes=sum(self._boxes.values()),
            boxes_per_class=self.boxes_per_class,
            shards=self.shards,
            problem_counts=dict(sorted(self.problems.counts.items())),
            lost_objects=self.problems.lost_objects,
            excluded_boxes=dict(sorted(self.counts.excluded.items())),
            crowd_boxes=self.counts.crowd_boxes,
            renamed=renamed,
            tiling=tiling,
            image_classes=self.image_classes.close(),
        )


def _check_usable(
    manifest: Manifest, summary: _Summary, strict: bool, permitted: Collection[str]
) -> None:
    """Raise SourceRejected if the set would be empty or meaningless.

    With ``strict``, also if there is any problem of a kind that is not permitted.
    """
    title, problems = f"{manifest.name} {manifest.split}", summary.problems
    faults = [kind for kind in problems.first if kind not in permitted]
    first = problems.first[faults[0]][0] if faults else None  # kinds are in order of occurrence
    if strict and faults:
        print(problems.format(), file=sys.stderr)
        number = sum(problems.counts[kind] for kind in faults)
        count = "1 problem" if number == 1 else f"{number} problems"
        raise SourceRejected(
            f"{title}: --strict rejects {count}; the first: {first}; nothing was written"
        )
    if not manifest.samples:
        for problem in problems.first.get("image skipped", [])[:1]:
            first = problem
        reason = f"; the first problem: {first}" if first else ""
        raise SourceRejected(f"{title}: no usable image{reason}; nothing was written")
    if fault := fault_of_set(summary.counts, problems):
        raise SourceRejected(f"{title}: {fault}; nothing was written")
