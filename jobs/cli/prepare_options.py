"""The options of the job ``prepare``, and which of them fit together."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, get_args

from jobs.cli.common import add_class_options, make_parser
from pipeline.errors import UserError

REQUIRED_OPTIONS = {
    "voc": ("root",),
    "coco": ("images", "annotations"),
    "yolo": ("root",),
    "webdataset": ("shards",),
    "shapes": (),
}
ALLOWED_OPTIONS = {
    "voc": ("split", "seed", "boxes_are", "corners_from"),
    "coco": ("split", "seed", "boxes_are"),
    "yolo": ("split", "seed", "boxes_are"),
    "webdataset": ("split", "seed", "boxes_are", "annotations", "box_format"),
    "shapes": ("count", "size", "object_sides", "max_objects", "seed", "split"),
}
DEFAULTS = {"count": 400, "size": 128, "seed": 0, "split": "train", "corners_from": 1}
DEFAULTS |= {"object_sides": None, "max_objects": 6}
# The defaults of the converter, repeated here because importing it takes a second.
SHARD_SAMPLES, SHARD_MIB = 10_000, 48
DEFAULT_OVERLAP = 0.2
MAX_SEED = 2**31 - 1  # as for train.seed


def prepare_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser("prepare", description)
    add = parser.add_argument
    add(
        "--source",
        required=True,
        choices=sorted(REQUIRED_OPTIONS),
        help="format of the labelled images",
    )
    add(
        "--out",
        required=True,
        type=_output,
        metavar="DIR",
        help="folder for the shard set, or a prefix in an object store: s3://BUCKET/NAME",
    )
    add(
        "--root",
        type=Path,
        metavar="DIR",
        help="voc: has Annotations; yolo: has the YAML, obj.data or classes.txt, or is the YAML",
    )
    add("--split", help="voc, yolo: split of the source; otherwise a name (default: train)")
    add("--images", type=Path, metavar="DIR", help="coco: folder of the images")
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="coco: instances JSON; webdataset: JSON with the categories that numbers refer to",
    )
    add(
        "--shards",
        metavar="PATTERN",
        help="webdataset: tars on disk, or at an http, https or s3 address: URI/{000..009}.tar",
    )
    add(
        "--box-format",
        choices=("xywh", "xyxy", "cxcywh"),
        help="webdataset: numbers of a box in JSON (default: boxes xyxy, bbox xywh)",
    )
    add("--count", type=_positive, metavar="N", help="shapes: images to draw (default: 400)")
    add("--size", type=_positive, metavar="PX", help="shapes: side of an image (default: 128)")
    add(
        "--object-sides",
        type=_sides,
        metavar="MIN,MAX",
        help="shapes: smallest and largest side of an object, in pixels; 8,24 makes a set of small "
        "objects (default: 1/8 and 15/32 of the image)",
    )
    add("--max-objects", type=_positive, metavar="N", help="shapes: objects per image (default: 6)")
    add("--seed", type=_seed, metavar="S", help="seed of shapes or of --split-by (default: 0)")
    add(
        "--boxes-are",
        choices=("stored", "upright"),
        help="pixels that boxes refer to: as stored, or turned upright by the EXIF orientation "
        "(default: decided by the annotated sizes and boxes of images turned sideways; "
        "yolo: upright)",
    )
    add(
        "--corners-from",
        type=int,
        choices=(0, 1),
        help="voc: number of the first pixel in the XML files (default: 1)",
    )
    add(
        "--split-by",
        type=_ratio,
        metavar="RATIO",
        help="split into DIR/train, with this fraction of the images, and DIR/val",
    )
    add(
        "--compare-with",
        action="append",
        default=[],
        metavar="SHARDSET",
        help="report images that are also in that set (leaks); may be repeated",
    )
    add_class_options(parser)
    add(
        "--rename",
        action="append",
        default=[],
        type=_renaming,
        metavar="OLD=NEW",
        help="rename a class; the name of another class merges both; before --classes; may be "
        "repeated",
    )
    add(
        "--tile",
        type=_tile_size,
        metavar="PX",
        help="cut images that are larger into tiles of this side, in pixels",
    )
    add(
        "--overlap",
        type=_overlap,
        metavar="F",
        help=f"of neighbouring tiles, as a part of their side (default: {DEFAULT_OVERLAP})",
    )
    add(
        "--empty-tiles",
        choices=("all", "none"),
        help="which of the tiles without objects to keep (default: all)",
    )
    add("--name", help="name of the data set (default: from the source)")
    add("--strict", action="store_true", help="write nothing if there is any problem but notes")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="with --strict: a kind of problem that is permitted, such as 'file unused'; may be "
        "repeated",
    )
    add("--overwrite", action="store_true", help="replace the shard set in --out")
    add(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="shards to convert in parallel; more than 1 use Ray (default: 1)",
    )
    add(
        "--shard-samples",
        type=_positive,
        default=SHARD_SAMPLES,
        metavar="N",
        help=f"maximum samples per shard (default: {SHARD_SAMPLES})",
    )
    add(
        "--shard-mib",
        type=_positive,
        default=SHARD_MIB,
        metavar="MIB",
        help=f"approximate maximum size of a shard in MiB (default: {SHARD_MIB})",
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError unless the options fit the source and each other."""
    from pipeline.data.shards.problems import ProblemKind

    kind = options.source
    for needed in REQUIRED_OPTIONS[kind]:
        if getattr(options, needed) is None:
            raise UserError(f"--source {kind} needs --{needed}")
    sources = {"root", "images", "annotations", "boxes_are", "shards", "box_format"}
    for other in {*sources, *DEFAULTS} - {
        *REQUIRED_OPTIONS[kind],
        *ALLOWED_OPTIONS[kind],
    }:
        if getattr(options, other) is not None:
            option = other.replace("_", "-")
            raise UserError(f"--{option} cannot be used with --source {kind}")
    for name in ("overlap", "empty_tiles"):
        if options.tile is None and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} has no effect without --tile")
    if options.allow and not options.strict:
        raise UserError("--allow has no effect without --strict")
    kinds = get_args(ProblemKind)
    for name in options.allow:
        if name not in kinds:
            raise UserError(f"--allow {name!r}: unknown kind; known: {', '.join(kinds)}")
    if options.split_by is None:
        if kind in ("voc", "yolo") and options.split is None:
            raise UserError(
                f"--source {kind} needs --split NAME, or --split-by RATIO for all its images"
            )
        if kind != "shapes" and options.seed is not None:
            raise UserError(f"--seed cannot be used with --source {kind} without --split-by")
    elif kind == "shapes":
        raise UserError("--split-by cannot be used with --source shapes; generate each --split")


def option_value(options: argparse.Namespace, name: str) -> Any:
    """Return an option, or its default if it was not given."""
    given = getattr(options, name)
    return DEFAULTS[name] if given is None else given


def _output(text: str) -> Path | str:
    return text.rstrip("/") if "://" in text else Path(text)


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = (part.strip() for part in text.partition("="))
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def _sides(text: str) -> tuple[float, float]:
    with contextlib.suppress(ValueError):
        low, high = (float(part) for part in text.split(","))
        if 0 < low <= high < float("inf"):
            return low, high
    raise argparse.ArgumentTypeError(f"{text!r} is not MIN,MAX in pixels, such as 8,24")


def _ratio(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


def _overlap(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 0.9:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 0.9")


def _tile_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 32")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**31 - 1")
    return int(text)
