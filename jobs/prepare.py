"""Convert labelled images to a shard set.

python -m jobs.prepare --source voc --root DIR --split train --out DIR
python -m jobs.prepare --source coco --images DIR --annotations FILE --out DIR
python -m jobs.prepare --source yolo --root DIR --split train --out DIR
python -m jobs.prepare --source webdataset --shards 'URI/{000..009}.tar' --out DIR
python -m jobs.prepare --source shapes --count 400 --split train --seed 0 --out DIR
python -m jobs.prepare --source shapes --object-sides 8,24 --max-objects 20 --size 256 --out DIR

DIR may be a tar or zip, or a folder inside one (data.tar/VOCdevkit/VOC2007); FILE may be in one.
--out may be a prefix in an object store: s3://BUCKET/NAME.
With --split-by 0.8 the images are split into DIR/train and DIR/val; near duplicates stay together.
An interrupted conversion resumes when the same command is run again.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.common import command, given_classes, run_job
from jobs.cli.prepare_options import (
    DEFAULT_OVERLAP,
    check_options,
    option_value,
    prepare_parser,
)
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.conversion.convert import StagedShardSet
    from pipeline.data.conversion.image_hashes import ImageHashes
    from pipeline.data.shards.manifest import Manifest, Tiling
    from pipeline.data.shards.problems import Problem
    from pipeline.data.sources.record import Source

# A set of at least so many bytes in fewer shards than this gets a hint.
FEW_SHARDS, LARGE_SET_BYTES = 8, 64 * 2**20


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert as given on the command line; return the figures of the new set, or of both sets."""
    staged, seconds = convert(argv)
    print(f"next: {command('train')} {shlex.join(_data_options(staged))}", flush=True)
    figures = [_figures(one, seconds) for one in staged]
    return figures[0] if len(figures) == 1 else {"sets": figures, "seconds": seconds}


def convert(argv: Sequence[str] | None = None) -> tuple[list[StagedShardSet], float]:
    """Convert, publish and print the new set, or both sets; return them and the seconds taken."""
    options = prepare_parser(str(__doc__)).parse_args(argv)
    check_options(options)
    from pipeline.data.conversion.near_duplicates import hash_shard_set

    started = time.monotonic()
    with _cluster(options.workers):
        others = [hash_shard_set(uri) for uri in options.compare_with]
        source, classes = _source_and_classes(options)
        staged = _stage(options, source, classes, others)
    for one in staged:
        one.publish()
    seconds = round(time.monotonic() - started, 2)
    for one in staged:
        _print_result(one, seconds)
    return staged, seconds


def _source_and_classes(options: argparse.Namespace) -> tuple[Source, list[str]]:
    """Return the source, with renamed classes, and the classes of the set in order."""
    from pipeline.data.sources.rename import rename_classes

    given = given_classes(options)
    if not options.rename:
        source = _framed_source(options, given)
        return source, given or source.classes
    new_names = dict(options.rename)
    if len(new_names) != len(options.rename):
        raise UserError("--rename names a class twice; give each one name")
    # --classes has the new names; only labels with numbers and no names also take these from it.
    may_number = options.source in ("yolo", "webdataset")
    source = _framed_source(options, given if may_number else None)
    renamed = rename_classes(source, new_names)
    numbered = may_number and given == source.classes
    return renamed, renamed.classes if given is None or numbered else given


def _framed_source(options: argparse.Namespace, classes: list[str] | None) -> Source:
    """Return the source, with what its boxes refer to decided."""
    from pipeline.data.conversion.frames.orientation import settle_frame

    return settle_frame(_source(options, classes), options.boxes_are)


def _source(options: argparse.Namespace, classes: list[str] | None) -> Source:
    from pipeline.data.sources.coco import coco_source
    from pipeline.data.sources.synthetic import shapes_source
    from pipeline.data.sources.voc import voc_source
    from pipeline.data.sources.webdataset.source import webdataset_source
    from pipeline.data.sources.yolo import yolo_source

    if options.source == "voc":
        first = option_value(options, "corners_from")
        return voc_source(options.root, options.split, classes, first)
    if options.source == "yolo":
        return yolo_source(options.root, options.split, classes)
    if options.source == "coco":
        return coco_source(options.images, options.annotations)
    if options.source == "webdataset":
        return webdataset_source(options.shards, classes, options.annotations, options.box_format)
    return shapes_source(
        *(
            option_value(options, name)
            for name in ("count", "split", "size", "seed", "object_sides", "max_objects")
        )
    )


def _tiling(options: argparse.Namespace) -> Tiling | None:
    from pipeline.data.shards.manifest import Tiling

    if options.tile is None:
        return None
    overlap = DEFAULT_OVERLAP if options.overlap is None else options.overlap
    return Tiling(size=options.tile, overlap=overlap, empty=options.empty_tiles or "all")


def _stage(
    options: argparse.Namespace, source: Source, classes: list[str], others: list[ImageHashes]
) -> list[StagedShardSet]:
    """Write the set, or the two sets of a split, without publishing them."""
    from pipeline.data.conversion.convert import SourceRejected, stage_shard_set
    from pipeline.data.conversion.staging import open_staging
    from pipeline.data.conversion.train_val_split import split_train_val

    if options.split_by is None:
        parts = {option_value(options, "split"): source}
        outs = [options.out]
    else:
        outs = [_below(options.out, split) for split in ("train", "val")]
        for out in outs:
            open_staging(out).check(options.overwrite)
        seed = option_value(options, "seed")
        sides = split_train_val(source.images, options.split_by, seed, options.workers)
        # Problems of the source as a whole are reported with the first set.
        shown: tuple[list[Problem], ...] = (source.problems, [])
        parts = {
            name: replace(source, images=side, total=len(side), problems=list(problems))
            for name, side, problems in zip(("train", "val"), sides, shown, strict=True)
        }
    staged: list[StagedShardSet] = []
    try:
        for (split, part), out in zip(parts.items(), outs, strict=True):
            one = stage_shard_set(
                part.images,
                part.problems,
                out,
                options.name or source.name,
                split,
                classes,
                source=source.kind,
                category_ids=source.category_ids if classes == source.classes else None,
                total=part.total,
                overwrite=options.overwrite,
                strict=options.strict,
                allowed=options.allow,
                renamed=dict(options.rename),
                tiling=_tiling(options),
                shard_samples=options.shard_samples,
                shard_bytes=options.shard_mib * 2**20,
                workers=options.workers,
                others=[*others, *(other.hashes for other in staged)],
            )
            staged.append(one)
    except SourceRejected:
        for one in staged:
            one.discard()
        raise
    return staged


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Hold one Ray cluster for all steps, if there is more than one worker."""
    from pipeline.config import RayConfig
    from pipeline.distributed.ray_cluster import ray_cluster

    with ray_cluster(RayConfig(workers=1)) if workers > 1 else contextlib.nullcontext():
        yield


def _figures(staged: StagedShardSet, seconds: float) -> dict[str, Any]:
    from pipeline.data.shards.manifest import MANIFEST

    manifest = staged.manifest
    return {
        "out": _absolute(staged.out),
        "manifest": _absolute(_below(staged.out, MANIFEST)),
        "name": manifest.name,
        "split": manifest.split,
        "samples": manifest.samples,
        "classes": manifest.classes,
        "renamed": manifest.renamed,
        "boxes_per_class": manifest.boxes_per_class,
        "shards": len(manifest.shards),
        "problems": manifest.problem_counts,
        "lost_objects": manifest.lost_objects,
        "excluded_boxes": manifest.excluded_boxes,
        "fingerprint": manifest.fingerprint,
        "seconds": seconds,
    }


def _print_result(staged: StagedShardSet, seconds: float) -> None:
    from pipeline.data.conversion.checks.verdict import list_excluded, lost_headline
    from pipeline.progress import counted

    manifest = staged.manifest
    counts = [f"{name} {count}" for name, count in manifest.boxes_per_class.items() if count]
    unused = len(manifest.classes) - len(counts)
    boxes = ", ".join(counts) or "none"
    if unused:
        boxes += f"; classes without boxes: {unused}"
    if manifest.crowd_boxes:
        boxes += f"; crowd regions among them: {manifest.crowd_boxes}"
    print(
        f"{staged.out}: {counted(manifest.samples, 'image')} in "
        f"{counted(len(manifest.shards), 'shard')}, {seconds} s; "
        f"without objects {manifest.samples_without_objects}\nboxes: {boxes}"
    )
    if manifest.excluded_boxes:
        print(f"left out by --classes: {list_excluded(manifest.excluded_boxes)}")
    if headline := lost_headline(staged.counts, staged.problems):
        print(headline)
    if advice := _shard_advice(manifest):
        print(advice)
    print(staged.problems.format())


def _shard_advice(manifest: Manifest) -> str | None:
    """Return a hint if a large set has few shards, which is slow over a network."""
    size, count = int(manifest.sizes.sum()), len(manifest.shards)
    if count >= FEW_SHARDS or size < LARGE_SET_BYTES:
        return None
    return (
        f"shards: {count} are few. That is fine on a local disk; over a network, workers would "
        f"wait for the same files. --shard-mib {size // FEW_SHARDS // 2**20} gives {FEW_SHARDS} or "
        "more"
    )


def _data_options(staged: list[StagedShardSet]) -> list[str]:
    outs = [str(one.out) for one in staged]
    if len(outs) > 1:
        return ["--data.train", outs[0], "--data.val", outs[1]]
    split = staged[0].manifest.split
    if split.startswith("train"):
        return ["--data.train", outs[0]]
    kind = "val" if split.startswith("val") else "test"
    return ["--data.train", "TRAINING_SET", f"--data.{kind}", outs[0]]


def _below(out: Path | str, name: str) -> Path | str:
    from pipeline.storage.folder import join  # slow to import

    return out / name if isinstance(out, Path) else join(out, name)


def _absolute(out: Path | str) -> str:
    return str(out.absolute()) if isinstance(out, Path) else out


if __name__ == "__main__":
    run_job(main)
