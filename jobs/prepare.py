"""Turn labelled images into a shard set.

python -m jobs.prepare --source voc --root DIR --split train --out DIR
python -m jobs.prepare --source coco --images DIR --annotations FILE --out DIR
python -m jobs.prepare --source shapes --count 400 --split train --seed 0 --out DIR
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs._cli import make_parser, run_job
from pipeline.data.coco import coco_source
from pipeline.data.convert import SHARD_BYTES, SHARD_SAMPLES, convert, report
from pipeline.data.manifest import MANIFEST, Manifest, load_manifest
from pipeline.data.records import Source
from pipeline.data.shapes import shapes_source
from pipeline.data.voc import voc_source
from pipeline.errors import UserError

NEEDED = {"voc": ("root", "split"), "coco": ("images", "annotations"), "shapes": ()}
ACCEPTED = {"voc": (), "coco": ("split",), "shapes": ("count", "size", "seed", "split")}
DEFAULTS = {"count": 400, "size": 128, "seed": 0, "split": "train"}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert as the command line says; the figures of the new shard set."""
    options = _parser().parse_args(argv)
    began = time.monotonic()
    source = _source(options)
    classes = _classes(options, source)
    manifest = convert(
        source.records,
        source.problems,
        options.out,
        options.name or source.name,
        _value(options, "split"),
        classes,
        source=source.kind,
        category_ids=source.category_ids if classes == source.classes else None,
        total=source.total,
        overwrite=options.overwrite,
        strict=options.strict,
        shard_samples=options.shard_samples,
        shard_bytes=options.shard_mib * 2**20,
    )
    seconds = round(time.monotonic() - began, 2)
    _tell(manifest, options.out, seconds)
    return {
        "out": str(options.out.absolute()),
        "manifest": str((options.out / MANIFEST).absolute()),
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


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("prepare", str(__doc__))
    add = parser.add_argument
    add("--source", required=True, choices=sorted(NEEDED), help="kind of the labelled images")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the shard set")
    add("--root", type=Path, metavar="DIR", help="voc: folder that holds Annotations")
    add("--split", help="voc: list to take from ImageSets/Main; else a name (default: train)")
    add("--images", type=Path, metavar="DIR", help="coco: folder of the pictures")
    add("--annotations", type=Path, metavar="FILE", help="coco: instances JSON")
    add("--count", type=_positive, metavar="N", help="shapes: scenes to draw (default: 400)")
    add("--size", type=_positive, metavar="PX", help="shapes: side of a scene (default: 128)")
    add("--seed", type=_natural, metavar="S", help="shapes: seed of the scenes (default: 0)")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--classes", metavar="A,B,C", help="class names, in this order")
    named.add_argument("--classes-from", metavar="SHARDSET", help="the classes of that shard set")
    add("--name", help="name of the data set (default: after the source)")
    add("--strict", action="store_true", help="write nothing if anything is wrong with the source")
    add("--overwrite", action="store_true", help="replace the shard set in --out")
    add("--shard-samples", type=_positive, default=SHARD_SAMPLES, metavar="N", help="most a shard")
    add("--shard-mib", type=_positive, default=SHARD_BYTES // 2**20, metavar="MIB", help="most MiB")
    return parser


def _source(options: argparse.Namespace) -> Source:
    kind = options.source
    for needed in NEEDED[kind]:
        if getattr(options, needed) is None:
            raise UserError(f"--source {kind} needs --{needed}")
    for other in {"root", "images", "annotations", *DEFAULTS} - {*NEEDED[kind], *ACCEPTED[kind]}:
        if getattr(options, other) is not None:
            raise UserError(f"--{other} does not go with --source {kind}")
    if kind == "voc":
        return voc_source(options.root, options.split)
    if kind == "coco":
        return coco_source(options.images, options.annotations)
    return shapes_source(*(_value(options, name) for name in ("count", "split", "size", "seed")))


def _value(options: argparse.Namespace, name: str) -> Any:
    given = getattr(options, name)
    return DEFAULTS[name] if given is None else given


def _classes(options: argparse.Namespace, source: Source) -> list[str]:
    if options.classes_from:
        return load_manifest(options.classes_from).classes
    if options.classes is None:
        return source.classes
    names = [name.strip() for name in options.classes.split(",")]
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"--classes {options.classes}: empty or repeated name")
    return names


def _tell(manifest: Manifest, out: Path, seconds: float) -> None:
    counts = [f"{name} {count}" for name, count in manifest.boxes_per_class.items() if count]
    unused = len(manifest.classes) - len(counts)
    boxes = ", ".join(counts) + (f"; {unused} classes without" if unused else "")
    print(
        f"{out}: {manifest.samples} images in {len(manifest.shards)} shards, {seconds} s; "
        f"without objects {manifest.samples_without_objects}\nboxes: {boxes}"
    )
    print(report(manifest.problems))
    sets = f"--data.train {out}"
    if not manifest.split.startswith("train"):
        sets = f"--data.train TRAINING_SET --data.test {out}"
    print(f"next: python -m jobs.train {sets}", flush=True)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


if __name__ == "__main__":
    run_job(main)
