"""Detect objects in images with a trained model.

    python -m jobs.predict --model models:/NAME@champion --images DIR --out DIR

Writes ``detections.jsonl`` (one line per image: file, width, height, detections) and a copy of each
image with its boxes drawn, in ``pictures``. The line of an image that cannot be read has the reason
as ``error``. Other files in a folder are not images and only counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.common import add_tracking_option, make_parser, run_job, tracking_config
from pipeline.errors import UserError
from pipeline.progress import counted

if TYPE_CHECKING:
    from pipeline.registry.predict import PredictionSummary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict on every image; return counts and the paths of the results."""
    options = _parse(argv)
    threshold = options.score_threshold
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise UserError(f"--score-threshold is {threshold}; it must be between 0 and 1")
    from pipeline.registry.predict import predict_folder
    from pipeline.tracking import resolve_uri

    registered = options.model.startswith("models:")
    uri = resolve_uri(tracking_config(options)) if registered else None
    summary = predict_folder(
        options.model,
        options.images,
        options.out,
        uri,
        threshold,
        options.pictures,
        options.bundle_code,
        options.calibrated,
    )
    _print_summary(summary)
    return {"model": options.model, **summary._asdict()}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("predict", __doc__ or "")
    parser.add_argument(
        "--model",
        required=True,
        metavar="URI",
        help="models:/NAME@champion, models:/NAME/1, or the folder of a run or checkpoint",
    )
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder, tar, zip, one image, or a text file with the path of an image on each line",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--score-threshold", type=float, metavar="S", help="minimum score; default: the model's"
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="return scores that are probabilities, by the temperature that was fitted on data.val",
    )
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="write detections.jsonl only"
    )
    parser.add_argument(
        "--bundle-code",
        action="store_true",
        help="run the code in the registered version instead of this project's; trust it first",
    )
    add_tracking_option(parser)
    return parser.parse_args(argv)


def _print_summary(summary: PredictionSummary) -> None:
    skipped = f", {counted(len(summary.skipped), 'image')} skipped" if summary.skipped else ""
    if summary.other_files:
        skipped += f", {counted(summary.other_files, 'other file')}"
    print(f"{summary.detections} detections in {summary.images} images{skipped}", file=sys.stderr)
    print(f"boxes: {summary.detections_file}", file=sys.stderr)
    if summary.pictures:
        print(f"pictures: {summary.pictures}", file=sys.stderr)


if __name__ == "__main__":
    run_job(main)
