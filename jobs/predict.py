"""Find objects in a folder of images with a registered model.

    python -m jobs.predict --model models:/NAME@champion --images DIR --out DIR

Writes ``detections.jsonl`` (one line per image: file, width, height, detections) and a copy of each
image with its boxes drawn, under ``pictures``. Files that are no images are named and skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs._cli import make_parser, run_job
from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.registry.predict import Summary, predict_folder
from pipeline.tracking import resolve_uri


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict; returns counts and where the results are."""
    options = _parse(argv)
    threshold = options.score_threshold
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise UserError(f"--score-threshold is {threshold}; it must be between 0 and 1")
    registered = options.model.startswith("models:")
    uri = resolve_uri(TrackingConfig(uri=options.tracking_uri)) if registered else None
    params = {} if threshold is None else {"score_threshold": threshold}
    summary = predict_folder(
        options.model, options.images, options.out, uri, params, pictures=options.pictures
    )
    _say(summary)
    return {"model": options.model, **summary._asdict()}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("predict", __doc__ or "")
    parser.add_argument(
        "--model", required=True, metavar="URI", help="models:/NAME@champion, models:/NAME/1, DIR"
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images to read")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--score-threshold", type=float, metavar="S", help="lowest score; default: the model's own"
    )
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="write detections.jsonl only"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="default: $MLFLOW_TRACKING_URI, else ./mlflow"
    )
    return parser.parse_args(argv)


def _say(summary: Summary) -> None:
    skipped = f", {len(summary.skipped)} files skipped" if summary.skipped else ""
    print(f"{summary.detections} detections in {summary.images} images{skipped}", file=sys.stderr)
    print(f"boxes: {summary.detections_file}", file=sys.stderr)
    if summary.pictures:
        print(f"pictures: {summary.pictures}", file=sys.stderr)


if __name__ == "__main__":
    run_job(main)
