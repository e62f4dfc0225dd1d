"""Start a job by its name: ``python -m jobs NAME ...``, or ``guidance NAME ...`` once installed.

Nothing is imported before the job is known, so that the list appears at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from jobs.cli.common import command, run_job

# In the order in which a user meets them.
JOBS = {
    "demo": "run the whole chain on generated images: prepare, train, register, predict",
    "start": "look at labelled images, propose a recipe for them, and train it with --yes",
    "prepare": "convert labelled images (VOC, COCO, YOLO, WebDataset, generated) to a shard set",
    "shards": "verify, describe, examine, preview or adopt a shard set",
    "describe": "print parameters and FLOPs of detectors",
    "train": "train a detector, evaluate it and register a model version",
    "tune": "search over configuration fields and write the best recipe",
    "compare": "compare variants of a recipe on several seeds, with intervals",
    "checkpoints": "list, verify or prune the checkpoints of a run",
    "tracking": "send records that runs could not send to the run store",
    "evaluate": "evaluate a model on a shard set: figures, one HTML page, suspicious labels",
    "thresholds": "search NMS settings and score thresholds of a model on a shard set",
    "register": "make a model version of any checkpoint",
    "promote": "make a version the champion if it is better, or roll back",
    "predict": "detect objects in a folder of images with a model",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job that the first argument names, or list the jobs. Exits with the job's code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        run_job(_print_listing, [])
        return
    name, *rest = arguments
    if name not in JOBS:
        for line in (f"error: unknown job {name!r}; the jobs are:", *listing(name)):
            print(line, file=sys.stderr)
        sys.exit(2)
    run_job(import_module(f"jobs.{name}").main, rest)


def _print_listing(_: Sequence[str] | None) -> dict[str, Any]:
    print("\n".join([f"usage: {command('NAME')} [options]", *listing()]))
    return {}


def listing(nearest_to: str = "") -> list[str]:
    """Return one line per job; those whose name is close to ``nearest_to`` come first."""
    near = difflib.get_close_matches(nearest_to, JOBS, n=len(JOBS))
    names = [*near, *(name for name in JOBS if name not in near)]
    return [
        *(f"  {name:<13}{JOBS[name]}" for name in names),
        f"Options of a job: {command('NAME')} --help",
    ]


if __name__ == "__main__":
    main()
