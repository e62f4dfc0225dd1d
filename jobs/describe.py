"""Print parameters and FLOPs per image of detectors.

Prints those of the detector of a recipe or of ``model.*`` options; without either, of every
backbone and neck.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jobs.cli.common import RECIPES, make_parser, run_job

SIZES = (320, 512)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print parameters and FLOPs of the configured detector, or of all of them."""
    from pipeline.config import load_config

    parser = make_parser("describe", __doc__ or "")
    parser.add_argument(
        "--classes", type=_positive, default=80, metavar="C", help="number of classes (80)"
    )
    config, options = load_config(parser, argv, RECIPES)
    from model import BACKBONES, NECKS
    from pipeline.flops import markdown_table, model_cost

    if options.config or config.model.model_fields_set:
        detectors = [config.model.network()]
    else:
        detectors = [
            {"backbone": backbone, "neck": neck, "image_size": size}
            for backbone in BACKBONES
            for neck in NECKS
            for size in SIZES
        ]
    costs = [model_cost(**detector, num_classes=options.classes) for detector in detectors]
    print("\n".join(markdown_table(costs)))
    return {"classes": options.classes, "detectors": [cost._asdict() for cost in costs]}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_job(main)
