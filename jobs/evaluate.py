"""Evaluate a model on a shard set.

python -m jobs.evaluate --model models:/NAME@champion --data shards/test
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs._cli import add_tracking_option, make_parser, run_job, tracking_config


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate on the CPU of this machine; return COCO's metrics, overall and per class."""
    parser = make_parser("evaluate", __doc__ or "")
    parser.add_argument(
        "--model",
        required=True,
        metavar="URI",
        help="models:/NAME@champion, models:/NAME/1, or the folder of a run or checkpoint",
    )
    parser.add_argument("--data", required=True, metavar="SHARDSET", help="shard set to use")
    add_tracking_option(parser)
    options = parser.parse_args(argv)
    from pipeline.evaluation.model_evaluation import evaluate_model
    from pipeline.registry import load_detector
    from pipeline.tracking import resolve_uri

    registered = options.model.startswith("models:")
    uri = resolve_uri(tracking_config(options)) if registered else None
    found = evaluate_model(load_detector(options.model, uri), options.data)
    assert found is not None, "this process is rank 0"
    result, manifest = found.evaluation.result, found.data
    for line in _table(result.metrics, result.per_class):
        print(line)
    return {
        "model": options.model,
        "data": manifest.name,
        "fingerprint": manifest.content_hash,
        "images": found.evaluation.table.images,
        "metrics": result.metrics,
        "per_class": result.per_class,
    }


def _table(metrics: dict[str, float], per_class: dict[str, dict[str, float]]) -> list[str]:
    rows = [(name, f"{value:.4f}", "") for name, value in metrics.items()]
    rows += [("class", "AP", "AP50")]
    rows += [(name, f"{v['ap']:.4f}", f"{v['ap50']:.4f}") for name, v in per_class.items()]
    width = max(len(row[0]) for row in rows)
    return [f"{name:<{width}}  {first:>6}  {second:>6}".rstrip() for name, first, second in rows]


if __name__ == "__main__":
    run_job(main)
