"""Search the settings of post-processing of a model, without training and with one prediction.

    python -m jobs.thresholds --model models:/NAME@champion --data shards/val

Searches the IoU of NMS, NMS within or across classes, and the number of detections per image, and
states whether the best setting is distinguishable from that of the training. Then it gives the
score thresholds of the highest F1, overall and per class. Use data.val or another set that is not
used for a final figure: what is chosen on a set scores too well on it.

With --register NAME, the weights are registered as a new version of NAME with the settings that are
advised and the score thresholds, which its predictions then use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.cli.common import (
    add_model_options,
    add_tracking_option,
    make_parser,
    run_job,
    tracking_config,
)

if TYPE_CHECKING:
    from pipeline.data import Manifest
    from pipeline.evaluation.postprocessing.settings import BestSettings, Settings, Tried
    from pipeline.registry import RegisteredVersion


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Search and print; return all settings with their scores, and the best."""
    parser = make_parser("thresholds", __doc__ or "")
    add_model_options(parser)
    parser.add_argument(
        "--register",
        metavar="NAME",
        help="register a version of this model with the advised settings and the score thresholds",
    )
    add_tracking_option(parser)
    options = parser.parse_args(argv)
    from pipeline.data import load_manifest
    from pipeline.evaluation.postprocessing.model_search import search_model
    from pipeline.progress import Progress
    from pipeline.registry import load_detector
    from pipeline.registry.register import check_model_name
    from pipeline.tracking import resolve_uri

    uri = None
    if options.register is not None:
        check_model_name(options.register, "--register")
    if options.register is not None or options.model.startswith("models:"):
        uri = resolve_uri(tracking_config(options))
    manifest = load_manifest(options.data)
    progress = Progress("predicting", manifest.samples)
    loaded = load_detector(options.model, uri)
    search = search_model(loaded, options.data, progress, _report)
    found = search.found
    for line in lines(found):
        print(line, flush=True)
    version = None
    if uri is not None and options.register is not None:
        version = _register(uri, loaded.uri, options.register, found, manifest)
        print(f"registered: {version.model_uri}", file=sys.stderr)
    return {
        "model": loaded.uri,
        "metric": found.metric,
        "before": _row(found.before),
        "best": _row(found.best),
        "gain": {"value": found.gain.value, "low": found.gain.low, "high": found.gain.high},
        "distinguishable": found.distinguishable,
        "advised": _row(found.advised),
        "score_threshold": found.score_threshold,
        "score_thresholds": found.score_thresholds,
        "tried": [_row(tried) for tried in search.tried],
        "registered": version.model_uri if version else None,
    }


def _register(
    uri: str, model: str, name: str, found: BestSettings, manifest: Manifest
) -> RegisteredVersion:
    """Register a model with the advised settings, from its bundle or its checkpoint."""
    from pipeline.registry.load import is_bundle
    from pipeline.registry.tuned_version import TunedSettings, register_tuned
    from pipeline.training.register_checkpoint import register_checkpoint

    changed = found.advised.settings != found.before.settings
    gain = f"{found.metric} {found.gain.value:+.4f} [{found.gain.low:+.4f}, {found.gain.high:+.4f}]"
    tuned = TunedSettings(
        **asdict(found.advised.settings),
        score_threshold=found.score_threshold,
        score_thresholds=found.score_thresholds,
        changed=changed,
        metrics=found.advised.metrics,
        gain=gain if changed else "score thresholds only",
        data=manifest.name,
        content_hash=manifest.content_hash,
        images=manifest.samples,
    )
    if is_bundle(model):
        return register_tuned(uri, model, name, tuned)
    return register_checkpoint(uri, model, name, tuned)


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
