"""Print what detectors cost: ``python -m jobs.describe``, or ``--config RECIPE`` for one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jobs._cli import make_parser, run_job
from model import BACKBONES, NECKS
from pipeline.config import load_config
from pipeline.flops import cost, table

SIZES = (320, 512)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parameters and FLOPs of the configured detector, or of all of them."""
    parser = make_parser(
        "describe",
        "Print parameters and FLOPs per image: of a recipe's detector, or of every backbone and "
        "neck where neither a recipe nor a model.* field is given.",
    )
    parser.add_argument(
        "--classes", type=_positive, default=80, metavar="C", help="classes to tell apart (80)"
    )
    config, options = load_config(parser, argv)
    if options.config or config.model.model_fields_set:
        kinds = [(config.model.backbone, config.model.neck, config.model.image_size)]
    else:
        kinds = [(b, n, size) for b in BACKBONES for n in NECKS for size in SIZES]
    costs = [cost(*kind, options.classes) for kind in kinds]
    print("\n".join(table(costs)))
    return {"classes": options.classes, "detectors": [item._asdict() for item in costs]}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_job(main)
