"""Verify, describe, examine, preview, adopt or upgrade a shard set in a folder or at an address.

python -m jobs.shards verify URI                  check every hash, sample and count
python -m jobs.shards describe URI [--html FILE]  classes, counts, box sizes, problems, pictures
python -m jobs.shards preview URI --out FILE      what training sees: augmented images with boxes;
                                                  also accepts --config and --SECTION.FIELD VALUE
python -m jobs.shards doctor URI                  what will hurt a training, with remedies, and how
                                                  well anchors fit; also accepts --config,
                                                  --compare-with SHARDSET and --anchors fit
python -m jobs.shards adopt URI --classes A,B     make a shard set of tars that are in its format
                                                  already, such as those of webdataset's writer
python -m jobs.shards upgrade URI                 add what earlier versions did not store: the
                                                  classes of each image; the shards stay the same
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli.common import RECIPES, add_class_options, command, given_classes, make_parser, run_job
from jobs.cli.doctor import doctor
from pipeline.errors import UserError

MAX_LISTED_FAULTS = 100


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one of the commands and return its figures."""
    parser = make_parser("shards", str(__doc__))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_verify, _add_describe, _add_adopt, _add_upgrade):
        add(commands)
    for name, (_, text) in CONFIGURED.items():
        commands.add_parser(name, help=text, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] in CONFIGURED:
        arguments.remove(words[0])
        run, _ = CONFIGURED[words[0]]
        return run(arguments)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = options.run(options)
    return result


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """Add a command with the argument and the option that all commands have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("uri", metavar="URI", help="folder or address of the shard set")
    # Without its own default, which would override a --json before the command.
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one final JSON line"
    )
    return parser


def _add_verify(commands: Any) -> None:
    _command(commands, "verify", _verify, "check every hash, every sample and all counts")


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.data.shards.verify import verify
    from pipeline.progress import counted

    began = time.monotonic()
    found = verify(options.uri)
    shards = len(found.manifest.shards)
    _check_faults(options.uri, found.faults)
    seconds = round(time.monotonic() - began, 2)
    counts = f"{counted(found.samples, 'sample')} in {counted(shards, 'shard')}"
    print(f"{options.uri}: valid: {counts}, {seconds} s")
    return {
        "uri": options.uri,
        "samples": found.samples,
        "shards": shards,
        "content_hash": found.manifest.content_hash,
        "seconds": seconds,
    }


def _check_faults(title: str, faults: list[str]) -> None:
    """Raise UserError with a line for each fault, if there are any."""
    from pipeline.progress import counted

    if faults:
        lines = [f"{title}: {counted(len(faults), 'fault')}", *faults[:MAX_LISTED_FAULTS]]
        more = len(faults) - MAX_LISTED_FAULTS
        raise UserError("\n".join([*lines, *([f"... and {more} more"] if more > 0 else [])]))


def _add_adopt(commands: Any) -> None:
    parser = _command(
        commands,
        "adopt",
        _adopt,
        "check tars that are in the format of shards, and write their indices and a manifest "
        "beside them; the tars stay as they are",
    )
    add_class_options(parser, required=True)
    parser.add_argument("--name", help="name of the data set (default: that of its folder)")
    parser.add_argument("--split", default="train", help="name of the split (default: train)")
    parser.add_argument("--overwrite", action="store_true", help="replace the manifest in URI")


def _adopt(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.data.shards.adopt import MAX_FAULTS, adopt
    from pipeline.progress import counted

    began = time.monotonic()
    classes = given_classes(options)
    assert classes is not None  # one of the options is required
    manifest, faults = adopt(
        options.uri,
        classes,
        name=options.name,
        split=options.split,
        overwrite=options.overwrite,
    )
    more = "; the check stopped there" if len(faults) >= MAX_FAULTS else ""
    hint = f"{command('prepare')} --source webdataset converts other WebDataset tars"
    _check_faults(f"{options.uri}: not in the format of shards; {hint}{more}", faults)
    assert manifest is not None  # without faults there is one
    counts = f"{counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}"
    seconds = round(time.monotonic() - began, 2)
    print(f"{options.uri}: now a shard set: {counts}, {seconds} s")
    return {
        "uri": options.uri,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "boxes_per_class": manifest.boxes_per_class,
        "fingerprint": manifest.fingerprint,
        "content_hash": manifest.content_hash,
        "seconds": seconds,
    }


def _add_upgrade(commands: Any) -> None:
    _command(
        commands,
        "upgrade",
        _upgrade,
        "add to a shard set what earlier versions did not store: the classes of each image; the "
        "shards stay as they are",
    )


def _upgrade(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.data.shards.image_classes import add_image_classes
    from pipeline.progress import counted

    manifest = add_image_classes(options.uri)
    print(f"{options.uri}: has the classes of {counted(manifest.samples, 'image')}")
    return {
        "uri": options.uri,
        "samples": manifest.samples,
        "content_hash": manifest.content_hash,
        "format_version": manifest.format_version,
    }


def _add_describe(commands: Any) -> None:
    parser = _command(
        commands, "describe", _describe, "classes, counts, box sizes, empty images and problems"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write an HTML page with pictures"
    )


def _describe(options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.reports.dataset_report import describe, format_html, format_text

    shards, found = describe(options.uri)
    print(format_text(found))
    if options.html:
        try:
            options.html.write_text(format_html(shards, found), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {options.html}: {error.strerror}") from None
        print(f"\npage: {options.html}")
    return {
        "uri": options.uri,
        **found.facts(),
        "samples": found.manifest.samples,
        "samples_without_objects": found.empty,
        "boxes_per_class": {name: found.boxes[name] for name in found.manifest.classes},
        "images_per_class": {name: found.images[name] for name in found.manifest.classes},
        "box_sides": dict(found.histogram()),
        "problems": found.problems(),
        "html": str(options.html.absolute()) if options.html else None,
    }


def _preview(argv: Sequence[str]) -> dict[str, Any]:
    from pipeline.config import load_config

    parser = make_parser(
        "shards preview",
        "Write a sheet of the first images of an epoch, augmented as in training with this "
        "configuration, with the boxes that training learns from.",
    )
    add = parser.add_argument
    add("uri", metavar="URI", help="folder or address of the shard set")
    add("--out", type=Path, required=True, metavar="FILE", help="image to write: .png or .jpg")
    add("--images", type=int, default=16, choices=range(1, 257), metavar="N", help="1 to 256 (16)")
    add("--epoch", type=int, default=0, choices=range(10**6), metavar="E", help="from 0 (0)")
    config, options = load_config(parser, argv, RECIPES)
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {options.out}: name a .png or .jpg file")
    from PIL import Image

    from pipeline.reports.preview import preview

    sheet, problems = preview(options.uri, config, options.images, options.epoch)
    try:
        Image.fromarray(sheet).save(options.out)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from None
    print("\n".join([*problems, f"sheet: {options.out}"]))
    return {
        "uri": options.uri,
        "out": str(options.out.absolute()),
        "images": options.images,
        "epoch": options.epoch,
        "problems": problems,
    }


# Commands that also accept fields of the configuration.
CONFIGURED = {
    "doctor": (doctor, "find what will hurt a training, and anchors that fit"),
    "preview": (_preview, "write a sheet of augmented images"),
}

if __name__ == "__main__":
    run_job(main)
