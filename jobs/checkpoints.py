"""Manage the checkpoints of a run: ``python -m jobs.checkpoints list|verify|prune URI``.

list    list all checkpoints, with those that are damaged or incomplete
verify  read every byte and compare checksums; exit code 1 if a checkpoint is damaged
prune   delete all but the best and the latest, and leftovers of killed trainings; refused while
        the run is being trained
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobs.cli.common import make_parser, run_job
from pipeline.errors import OutageError, TrainingFailed, UserError

if TYPE_CHECKING:
    from pipeline.checkpoints.store import CheckpointStore, SavedCheckpoint


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Act on the checkpoints in the folder or URI of a run; return the printed table."""
    parser = make_parser("checkpoints", __doc__ or "")
    parser.add_argument(
        "action", choices=("list", "verify", "prune"), metavar="COMMAND", help="see above"
    )
    parser.add_argument("uri", metavar="URI", help="folder or URI of a run: STORAGE/NAME")
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="prune: best ones to keep besides the latest; default: keep_checkpoints of the run",
    )
    parser.add_argument(
        "--older-than",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="prune: delete incomplete ones that were not modified for this long; default: 10",
    )
    parser.add_argument("--dry-run", action="store_true", help="prune: delete nothing, only list")
    options = parser.parse_args(argv)
    from pipeline.checkpoints.store import CheckpointStore
    from pipeline.storage.folder import absolute
    from pipeline.storage.redact import error_line

    store = CheckpointStore(absolute(options.uri))
    try:
        return _act(store, options)
    except OutageError:
        raise
    except OSError as error:
        text = error_line(error)
        raise UserError(f"{store.storage} cannot be read or written: {text}") from None


def _act(store: CheckpointStore, options: argparse.Namespace) -> dict[str, Any]:
    from pipeline.checkpoints.store import IncompleteCheckpoint
    from pipeline.progress import counted

    saved, incomplete = store.survey()
    if not saved and not incomplete:
        raise UserError(f"{store.storage} contains no checkpoints; give a run's folder or URI")
    if options.action == "verify":
        incomplete += [
            IncompleteCheckpoint(item.name, problem, 0.0)
            for item in saved
            if (problem := _damage(store, item))
        ]
        bad = {item.name for item in incomplete}
        saved = [item for item in saved if item.name not in bad]
    rows = [_row(item) for item in saved]
    rows += [{"name": item.name, "problem": item.problem} for item in incomplete]
    for row in sorted(rows, key=lambda row: str(row["name"])):
        print(_line(row))
    result: dict[str, Any] = {"uri": str(store.storage), "checkpoints": rows}
    damaged = [item.name for item in incomplete if "damaged" in item.problem]
    if options.action == "verify" and damaged:
        raise TrainingFailed(f"damaged: {', '.join(damaged)}; a resumed training skips them")
    if options.action == "verify":
        print(f"valid: {counted(len(saved), 'checkpoint')}")
    if options.action == "prune":
        result["deleted"] = _prune(store, saved, options)
    return result


def _prune(
    store: CheckpointStore, saved: Sequence[SavedCheckpoint], options: argparse.Namespace
) -> list[str]:
    keep = options.keep
    if keep is None:
        config = saved[-1].meta.config if saved else {}
        keep = config.get("train", {}).get("keep_checkpoints", 1)
    if keep < 1:
        raise UserError(f"--keep {keep}: keep at least 1 checkpoint")
    older_than = 60.0 * options.older_than
    if options.dry_run:
        names = store.prunable(keep, older_than=older_than)
    else:
        with _held(str(store.storage)):
            names = store.prune(keep, older_than=older_than)
    for name in names:
        print(f"{'would delete' if options.dry_run else 'deleted'} {name}")
    return names


@contextlib.contextmanager
def _held(uri: str) -> Iterator[None]:
    """Lease the run against a training. Raises UserError if one holds it."""
    from pipeline.storage.folder import split
    from pipeline.training.run_record import RunRecord

    record = RunRecord(*split(uri))
    record.hold()
    try:
        yield
    finally:
        record.close()


def _damage(store: CheckpointStore, item: SavedCheckpoint) -> str | None:
    from pipeline.checkpoints.format import DamagedCheckpoint

    try:
        store.verify(item.name)
    except DamagedCheckpoint as error:
        return str(error)
    return None


def _row(item: SavedCheckpoint) -> dict[str, Any]:
    from pipeline.checkpoints.format import STATE

    return {
        "name": item.name,
        "step": item.step,
        "epoch": item.meta.epoch,
        "metric": item.meta.deciding_metric,
        "score": (item.meta.metrics or {}).get(item.meta.deciding_metric),
        "bytes": item.meta.files[STATE].bytes,
        "saved": item.meta.saved,
        "world_size": item.meta.world_size,
        "weights_sha256": item.meta.weights_sha256,
        "ema_sha256": item.meta.ema_sha256,
    }


def _line(row: dict[str, Any]) -> str:
    if "problem" in row:
        return f"{row['name']}  {row['problem']}"
    score = "-" if row["score"] is None else f"{row['score']:.4f}"
    saved = datetime.fromtimestamp(row["saved"]).isoformat(" ", "seconds")
    return (
        f"{row['name']}  epoch {row['epoch']:.2f}  {row['metric']} {score}  "
        f"{row['bytes'] / 1e6:.1f} MB  {saved}  weights {row['weights_sha256'][:12]}"
    )


if __name__ == "__main__":
    run_job(main)
