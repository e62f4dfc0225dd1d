"""Search the settings of post-processing of a model, without training and with one prediction.

    python -m jobs.thresholds --model models:/NAME@champion --data shards/val

Searches the IoU of NMS, NMS within or across classes, and the number of detections per image, and
states whether the best setting is distinguishable from that of the training. Then it gives the
score thresholds of the highest F1, overall and per class. Use data.val or another set that is not
used for a final figure: what is chosen on a set scores too well on it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs._cli import add_model_options, add_tracking_option, make_parser, run_job, tracking_config

if TYPE_CHECKING:
    from pipeline.evaluation.postprocessing.settings import BestSettings, Settings, Tried


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Search and print; return all settings with their scores, and the best."""
    parser = make_parser("thresholds", __doc__ or "")
    add_model_options(parser)
    add_tracking_option(parser)
    options = parser.parse_args(argv)
    from pipeline.data import load_manifest
    from pipeline.evaluation.postprocessing.model_search import search_model
    from pipeline.progress import Progress
    from pipeline.registry import load_detector
    from pipeline.tracking import resolve_uri

    uri = None
    if options.model.startswith("models:"):
        uri = resolve_uri(tracking_config(options))
    progress = Progress("predicting", load_manifest(options.data).samples)
    loaded = load_detector(options.model, uri)
    search = search_model(loaded, options.data, progress, _report)
    found = search.found
    for line in lines(found):
        print(line, flush=True)
    return {
        "model": loaded.uri,
        "metric": found.metric,
        "before": _row(found.before),
        "best": _row(found.best),
        "gain": {"value": found.gain.value, "low": found.gain.low, "high": found.gain.high},
        "distinguishable": found.distinguishable,
        "score_threshold": found.score_threshold,
        "score_thresholds": found.score_thresholds,
        "tried": [_row(tried) for tried in search.tried],
    }


def lines(found: BestSettings) -> list[str]:
    """Return the result as text: the settings, what they gain, and the thresholds."""
    gain, metric = found.gain, found.metric
    before = found.before.metrics.get(metric, 0.0)
    text = [f"{metric} {before:.4f} with the settings of the training: {_text(found.before)}"]
    if found.best.settings == found.before.settings:
        text.append("no other setting scores higher")
    else:
        interval = f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        verdict = "" if found.distinguishable else "; this may be noise"
        text.append(f"best: {_text(found.best)}, {interval}{verdict}")
    if found.score_threshold is not None:
        text.append(f"score threshold of the highest F1: {found.score_threshold:.3f}")
        text += [f"  {name}: {value:.3f}" for name, value in found.score_thresholds.items()]
    best = found.advised.settings
    text += [
        "for a recipe:",
        "evaluate:",
        f"  nms_iou: {best.nms_iou:g}",
        f"  class_agnostic: {str(best.class_agnostic).lower()}",
        f"  max_detections: {best.max_detections}",
    ]
    if found.score_threshold is not None:
        text += ["registry:", f"  score_threshold: {found.score_threshold:.3f}"]
    return text


def _report(tried: Tried) -> None:
    print(f"{_text(tried)}: ap {tried.metrics.get('ap', 0.0):.4f}", file=sys.stderr, flush=True)


def _text(tried: Tried) -> str:
    one: Settings = tried.settings
    across = "across classes" if one.class_agnostic else "within classes"
    return f"NMS at {one.nms_iou:g} {across}, {one.max_detections} detections"


def _row(tried: Tried) -> dict[str, Any]:
    return {**asdict(tried.settings), "metrics": tried.metrics}


if __name__ == "__main__":
    run_job(main)
