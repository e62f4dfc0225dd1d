"""Make a registered version the champion if it has shown that it is better, or take it back.

    python -m jobs.promote NAME --version 3 --data shards/test
    python -m jobs.promote NAME --version 3 --force --reason "the old camera is gone"
    python -m jobs.promote NAME --rollback
    python -m jobs.promote NAME --history

Evaluates the version and the champion on the same images and compares them by a paired bootstrap.
The section ``promote`` is the gate. If the version passes, it gets the alias ``champion``, and the
version that had it becomes ``previous``. Every decision is recorded with its figures and reasons.
Exit code 0: promoted or unchanged; 3: refused, and no alias has moved; 1: the registry does not
respond; 2: a mistake, or another promotion was faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.cli.common import RECIPES, JobResult, make_parser, run_job
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.promotion.promote import Outcome

REFUSED = 3  # exit code


def main(argv: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Decide, move the alias if the gate holds, and return verdict, reasons and aliases."""
    from pipeline.config import load_config

    parser = _parser()
    config, options = load_config(parser, argv, RECIPES, ("promote", "tracking"))
    _check(options)
    from pipeline.promotion.promote import Options, promote, rollback
    from pipeline.tracking import resolve_uri

    uri = resolve_uri(config.tracking)
    if options.history:
        return _history(uri, options.name)
    if options.rollback:
        outcome = rollback(uri, options.name, options.reason or "", options.dry_run)
    else:
        chosen = Options(
            options.reason if options.force else None, options.dry_run, options.allow_class_change
        )
        outcome = promote(uri, options.name, options.version, options.data, config, chosen)
    for line in summary(outcome):
        print(line, file=sys.stderr)
    code = REFUSED if outcome.decision.verdict == "refused" else 0
    return JobResult(_result(outcome, uri), code)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("promote", __doc__ or "")
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--version", type=int, metavar="V", help="version to make the champion")
    parser.add_argument("--data", metavar="SHARDSET", help="shard set to compare on")
    parser.add_argument("--rollback", action="store_true", help="return to the champion before")
    parser.add_argument("--history", action="store_true", help="list the moves of the champion")
    parser.add_argument(
        "--dry-run", action="store_true", help="decide, but record and move nothing"
    )
    parser.add_argument(
        "--force", action="store_true", help="promote whatever the gate says; needs --reason"
    )
    parser.add_argument("--reason", metavar="TEXT", help="recorded with --force or --rollback")
    parser.add_argument(
        "--allow-class-change",
        action="store_true",
        help="compare versions with other classes on the common ones",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    given = [options.version is not None, options.rollback, options.history]
    if sum(given) != 1:
        raise UserError("give one of --version V, --rollback and --history")
    if options.force and not options.reason:
        raise UserError("--force needs --reason TEXT, which is recorded")
    if options.force and options.version is None:
        raise UserError("--force is for --version")


def summary(outcome: Outcome) -> list[str]:
    """Return the lines that say what was decided, and why."""
    decision = outcome.decision
    would = "would be " if decision.dry_run else ""
    lines = [f"{decision.model} version {decision.version}: {would}{decision.verdict}"]
    lines += [f"  {reason}" for reason in decision.reasons]
    if decision.data:
        images, name = decision.data["images"], decision.data["name"]
        lines.append(f"  compared on {images} images of {name}")
    lines += [f"  note: {note}" for note in decision.notes]
    champion = f"version {outcome.champion}" if outcome.champion else "none"
    previous = f"version {outcome.previous}" if outcome.previous else "none"
    lines.append(f"champion: {champion}, previous: {previous}")
    if outcome.record:
        lines.append(f"record: {outcome.record}")
    return lines


def _result(outcome: Outcome, uri: str) -> dict[str, Any]:
    decision = outcome.decision
    gain = (decision.figures or {}).get("gain")
    return {
        "name": decision.model,
        "version": decision.version,
        "verdict": decision.verdict,
        "reasons": decision.reasons,
        "notes": decision.notes,
        "gain": {"ap": gain["value"], "low": gain["low"], "high": gain["high"]} if gain else None,
        "champion": outcome.champion,
        "previous": outcome.previous,
        "record": outcome.record or None,
        "dry_run": decision.dry_run,
        "data": decision.data,
        "figures": decision.figures,
        "model_uri": f"models:/{decision.model}@champion",
        "tracking_uri": uri,
    }


def _history(uri: str, name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from pipeline.promotion.aliases import read_moves
    from pipeline.promotion.moving import unfinished_move
    from pipeline.registry.load import get_aliases
    from pipeline.tracking import connect
    from pipeline.tracking.client import store_errors

    client = connect(uri)
    with store_errors(uri):
        aliases = get_aliases(client, uri, name)
        moves = read_moves(client, name)
        unfinished = unfinished_move(client, name)
    for move in moves:
        source = f"version {move.before}" if move.before else "none"
        line = f"{move.at}  {move.action:<8}  {source} -> version {move.after}  by {move.by}"
        line += f"  {move.reason}" if move.reason else ""
        line += "  (not completed)" if move == unfinished else ""
        print(line, file=sys.stderr)
    if not moves:
        print(f"{name}: the champion was never moved", file=sys.stderr)
    if unfinished is not None:
        now = f"version {aliases['champion']}" if "champion" in aliases else "none"
        print(
            f"champion: {now}; the last move is under way or was interrupted, which the next "
            "promotion or rollback repairs",
            file=sys.stderr,
        )
    return {
        "name": name,
        "aliases": aliases,
        "moves": [asdict(move) for move in moves],
        "unfinished": asdict(unfinished) if unfinished else None,
    }


if __name__ == "__main__":
    run_job(main)
