"""Evaluate a model on a shard set.

    python -m jobs.evaluate --model models:/NAME@champion --data shards/test --out evaluation

Prints AP with its interval, overall and per class. ``--out`` writes ``evaluation.html`` (one page
with every figure, chart and picture), ``evaluation.json`` and ``suspects.json`` (labels that may be
wrong, in COCO's format). The evaluation is recorded as its own MLflow run, with these files, unless
``--no-track`` is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.common import (
    add_model_options,
    add_tracking_option,
    make_parser,
    run_job,
    tracking_config,
)
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.evaluation.findings import Findings


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate here or on Ray; return the figures, the paths of the files and the run."""
    options = _parser().parse_args(argv)
    _check(options)
    from pipeline.data import load_manifest
    from pipeline.evaluation.findings import analyse
    from pipeline.evaluation.model_evaluation import evaluate_model, evaluation_config, latencies
    from pipeline.evaluation.outputs import Subject, figures, write_outputs
    from pipeline.evaluation.run import record_evaluation
    from pipeline.evaluation.workers import evaluate_on_ray
    from pipeline.progress import Progress
    from pipeline.registry import load_detector
    from pipeline.storage.redact import mask
    from pipeline.tracking import connect, resolve_run_store, resolve_uri
    from pipeline.tracking.provenance import git_state

    uri = None
    if options.track:
        uri = resolve_run_store(tracking_config(options))
        connect(uri)  # fails before the evaluation, not after it
    elif options.model.startswith("models:"):
        uri = resolve_uri(tracking_config(options))
    manifest = load_manifest(options.data)
    if not manifest.countable_boxes:
        crowds = " but crowd regions" if manifest.boxes else ""
        raise UserError(
            f"{options.data} has no objects{crowds}, so that there is nothing to find and nothing "
            "can be scored; convert it with its labels"
        )
    loaded = load_detector(options.model, uri)
    progress = Progress("evaluating", manifest.samples)
    if options.workers > 1:
        found = evaluate_on_ray(loaded, options.data, options.workers, progress=progress)
    else:
        alone = evaluate_model(loaded, options.data, progress=progress)
        assert alone is not None, "this process is rank 0"
        found = alone
    if not (~found.evaluation.table.object_ignored).any():
        raise UserError(f"{options.data} has only crowd and difficult objects, which do not count")
    settings = evaluation_config(loaded).evaluate
    speed = latencies([loaded])[0], _device_name()
    findings = analyse(found, settings.protocol, options.resamples, speed)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    subject = Subject(options.data, settings, at, git_state().revision)
    result = figures(found, findings, subject)
    result |= {"files": None, "run_id": None}
    for line in table(findings):
        print(line, flush=True)
    if findings.absent:
        names = ", ".join(findings.absent)
        print(f"{options.data} has no objects of: {names}; no figure is about them", flush=True)
    if options.out or options.track:
        with _folder(options.out) as folder:
            files = write_outputs(folder, found, findings, subject)
            result["files"] = files if options.out else None
            if options.out:
                print(f"page: {files['page']}", file=sys.stderr)
            if options.track:
                assert uri is not None
                result["run_id"] = record_evaluation(uri, found, findings, subject, files.values())
                print(f"recorded as run {result['run_id']} in {mask(uri)}", file=sys.stderr)
    result["tracking_uri"] = uri if options.track else None
    return result


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", __doc__ or "")
    add_model_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the page, the figures and the suspects"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="Ray workers; the figures are the same for any number; default: 1, this process",
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the images; default: 1000"
    )
    parser.add_argument(
        "--no-track", dest="track", action="store_false", help="do not record a run in MLflow"
    )
    add_tracking_option(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: give at least 1")
    if options.resamples < 1:
        raise UserError(f"--resamples {options.resamples}: give at least 1")
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)  # fails before the evaluation
        except OSError as error:
            raise UserError(f"--out {options.out}: {error.strerror}") from None


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def table(findings: Findings) -> list[str]:
    """Return the lines of metrics with their intervals, then those of the classes."""
    rows = []
    for name, value in findings.metrics.items():
        one = findings.intervals.get(name)
        rows.append((name, f"{value:.4f}", f"[{one.low:.4f}, {one.high:.4f}]" if one else ""))
    rows.append(("class", "AP", "AP50 and objects"))
    for found in findings.classes:
        ap, ap50 = (f"{one.value:.4f}" if one else "-" for one in (found.ap, found.ap50))
        rows.append((found.name, ap, f"{ap50}  {found.objects:>7}"))
    width = max(len(row[0]) for row in rows)
    return [f"{name:<{width}}  {first:>6}  {second}".rstrip() for name, first, second in rows]


if __name__ == "__main__":
    run_job(main)
