"""Turn labelled images into a shard set.

python -m jobs.prepare --source voc --root DIR --split train --out DIR
python -m jobs.prepare --source coco --images DIR --annotations FILE --out DIR
python -m jobs.prepare --source yolo --root DIR --split train --out DIR
python -m jobs.prepare --source shapes --count 400 --split train --seed 0 --out DIR

DIR may be a tar or zip, or a folder inside one (data.tar/VOCdevkit/VOC2007); FILE may lie in one.
With --split-by 0.8 the images are divided into DIR/train and DIR/val, look-alikes together.
A conversion that was interrupted goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs._cli import make_parser, run_job
from pipeline.config import RayConfig
from pipeline.data.conversion.convert import (
    SHARD_BYTES,
    SHARD_SAMPLES,
    Built,
    Refused,
    build,
    check_out,
    report,
)
from pipeline.data.conversion.near_duplicates import Looks, looks_of_set
from pipeline.data.conversion.train_val_split import divide
from pipeline.data.shards.manifest import MANIFEST, Manifest, Problem, load_manifest
from pipeline.data.sources.coco import coco_source
from pipeline.data.sources.record import Source
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.data.sources.yolo import yolo_source
from pipeline.distributed.ray_cluster import ray_cluster
from pipeline.errors import UserError

NEEDED = {"voc": ("root",), "coco": ("images", "annotations"), "yolo": ("root",), "shapes": ()}
ACCEPTED = {
    "voc": ("split", "seed"),
    "coco": ("split", "seed"),
    "yolo": ("split", "seed"),
    "shapes": ("count", "size", "seed", "split"),
}
DEFAULTS = {"count": 400, "size": 128, "seed": 0, "split": "train"}
# Fewer shards than this, in a set of more than this many bytes, are told of.
FEW_SHARDS, LARGE_SET = 8, 64 * 2**20
LARGEST_SEED = 2**31 - 1  # as train.seed has it


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert as the command line says; the figures of the new shard set, or of two."""
    options = _parser().parse_args(argv)
    _check_use(options)
    began = time.monotonic()
    with _cluster(options.workers):
        others = [looks_of_set(uri) for uri in options.compare_with]
        given = _given_classes(options)
        source = _source(options, given)
        built = _build(options, source, given or source.classes, others)
    for one in built:
        one.publish()
    seconds = round(time.monotonic() - began, 2)
    for one in built:
        _tell(one.manifest, one.out, seconds)
    print("next: python -m jobs.train " + _sets(built), flush=True)
    figures = [_figures(one, seconds) for one in built]
    return figures[0] if len(figures) == 1 else {"sets": figures, "seconds": seconds}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("prepare", str(__doc__))
    add = parser.add_argument
    add("--source", required=True, choices=sorted(NEEDED), help="kind of the labelled images")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the shard set")
    add("--root", type=Path, metavar="DIR", help="voc: holds Annotations; yolo: holds the YAML")
    add("--split", help="voc, yolo: split to take from the source; else a name (default: train)")
    add("--images", type=Path, metavar="DIR", help="coco: folder of the pictures")
    add("--annotations", type=Path, metavar="FILE", help="coco: instances JSON")
    add("--count", type=_positive, metavar="N", help="shapes: scenes to draw (default: 400)")
    add("--size", type=_positive, metavar="PX", help="shapes: side of a scene (default: 128)")
    add("--seed", type=_seed, metavar="S", help="of shapes or of --split-by (default: 0)")
    add(
        "--split-by",
        type=_ratio,
        metavar="RATIO",
        help="divide into DIR/train, with this share of the images, and DIR/val",
    )
    add(
        "--compare-with",
        action="append",
        default=[],
        metavar="SHARDSET",
        help="report pictures that are in that set too (leaks); may be repeated",
    )
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--classes", metavar="A,B,C", help="class names, in this order")
    named.add_argument("--classes-from", metavar="SHARDSET", help="the classes of that shard set")
    add("--name", help="name of the data set (default: after the source)")
    add("--strict", action="store_true", help="write nothing if anything is wrong with the source")
    add("--overwrite", action="store_true", help="replace the shard set in --out")
    add(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="shards to convert at a time; more than 1 on Ray (default: 1)",
    )
    add("--shard-samples", type=_positive, default=SHARD_SAMPLES, metavar="N", help="most a shard")
    add(
        "--shard-mib",
        type=_positive,
        default=SHARD_BYTES // 2**20,
        metavar="MIB",
        help=f"about the most MiB of a shard (default: {SHARD_BYTES // 2**20})",
    )
    return parser


def _check_use(options: argparse.Namespace) -> None:
    kind = options.source
    for needed in NEEDED[kind]:
        if getattr(options, needed) is None:
            raise UserError(f"--source {kind} needs --{needed}")
    for other in {"root", "images", "annotations", *DEFAULTS} - {*NEEDED[kind], *ACCEPTED[kind]}:
        if getattr(options, other) is not None:
            raise UserError(f"--{other} does not go with --source {kind}")
    if options.split_by is None:
        if kind in ("voc", "yolo") and options.split is None:
            raise UserError(
                f"--source {kind} needs --split NAME, or --split-by RATIO for all its images"
            )
        if kind != "shapes" and options.seed is not None:
            raise UserError(f"--seed does not go with --source {kind} without --split-by")
    elif kind == "shapes":
        raise UserError("--split-by does not go with --source shapes; draw each --split")


def _source(options: argparse.Namespace, classes: list[str] | None) -> Source:
    if options.source == "voc":
        return voc_source(options.root, options.split, classes)
    if options.source == "yolo":
        return yolo_source(options.root, options.split, classes)
    if options.source == "coco":
        return coco_source(options.images, options.annotations)
    return shapes_source(*(_value(options, name) for name in ("count", "split", "size", "seed")))


def _build(
    options: argparse.Namespace, source: Source, classes: list[str], others: list[Looks]
) -> list[Built]:
    """The set, or the two of a division, built and not yet published."""
    if options.split_by is None:
        parts = {_value(options, "split"): source}
        outs = [options.out]
    else:
        outs = [options.out / "train", options.out / "val"]
        for out in outs:
            check_out(out, options.overwrite)
        seed = _value(options, "seed")
        sides = divide(source.records, options.split_by, seed, options.workers)
        # What is wrong with the source as a whole is told with the first.
        shown: tuple[list[Problem], ...] = (source.problems, [])
        parts = {
            name: replace(source, records=side, total=len(side), problems=list(problems))
            for name, side, problems in zip(("train", "val"), sides, shown, strict=True)
        }
    built: list[Built] = []
    try:
        for (split, part), out in zip(parts.items(), outs, strict=True):
            one = build(
                part.records,
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
                shard_samples=options.shard_samples,
                shard_bytes=options.shard_mib * 2**20,
                workers=options.workers,
                others=[*others, *(other.looks for other in built)],
            )
            built.append(one)
    except Refused:
        for one in built:
            one.drop()
        raise
    return built


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """One cluster for all steps."""
    with ray_cluster(RayConfig(workers=1)) if workers > 1 else contextlib.nullcontext():
        yield


def _value(options: argparse.Namespace, name: str) -> Any:
    given = getattr(options, name)
    return DEFAULTS[name] if given is None else given


def _given_classes(options: argparse.Namespace) -> list[str] | None:
    if options.classes_from:
        return load_manifest(options.classes_from).classes
    if options.classes is None:
        return None
    names = [name.strip() for name in options.classes.split(",")]
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"--classes {options.classes}: empty or repeated name")
    return names


def _figures(built: Built, seconds: float) -> dict[str, Any]:
    manifest = built.manifest
    return {
        "out": str(built.out.absolute()),
        "manifest": str((built.out / MANIFEST).absolute()),
        "name": manifest.name,
        "split": manifest.split,
        "samples": manifest.samples,
        "classes": manifest.classes,
        "boxes_per_class": manifest.boxes_per_class,
        "shards": len(manifest.shards),
        "problems": manifest.problem_counts(),
        "fingerprint": manifest.fingerprint,
        "seconds": seconds,
    }


def _tell(manifest: Manifest, out: Path, seconds: float) -> None:
    counts = [f"{name} {count}" for name, count in manifest.boxes_per_class.items() if count]
    unused = len(manifest.classes) - len(counts)
    boxes = ", ".join(counts) + (f"; {unused} classes without" if unused else "")
    print(
        f"{out}: {manifest.samples} images in {len(manifest.shards)} shards, {seconds} s; "
        f"without objects {manifest.samples_without_objects}\nboxes: {boxes}"
    )
    if advice := _shard_advice(manifest):
        print(advice)
    print(report(manifest.problems))


def _shard_advice(manifest: Manifest) -> str | None:
    """What to know before a set of few large shards is read over a network."""
    size, count = int(manifest.sizes.sum()), len(manifest.shards)
    if count >= FEW_SHARDS or size < LARGE_SET:
        return None
    return (
        f"shards: {count} are few. On a disk that is fine; over a network, workers would wait for "
        f"the same files. --shard-mib {size // FEW_SHARDS // 2**20} gives {FEW_SHARDS} or more"
    )


def _sets(built: list[Built]) -> str:
    if len(built) > 1:
        return f"--data.train {built[0].out} --data.val {built[1].out}"
    if built[0].manifest.split.startswith("train"):
        return f"--data.train {built[0].out}"
    return f"--data.train TRAINING_SET --data.test {built[0].out}"


def _ratio(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**31 - 1")
    return int(text)


if __name__ == "__main__":
    run_job(main)
