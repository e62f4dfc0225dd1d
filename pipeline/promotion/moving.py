"""Carry out a recorded decision, and complete or undo one that was killed while it was carried out.

The order is: the record, the move in the trail, ``previous``, ``champion``, the tags of the
version, the end of the record's run. Wherever a process dies after the trail, the next command
finds the last move in it with a record that is still open. If the champion has moved, the rest is
completed, else the beginning is undone. A process that dies before leaves an open record without a
move, like one that is about to move; such a record is ended when it is old, under the claim.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.errors import OutageError, UserError
from pipeline.promotion import aliases
from pipeline.promotion.aliases import CHAMPION, Move, MoveUnfinishedError
from pipeline.promotion.decision import (
    Decision,
    abandoned_records,
    end_record,
    is_open,
    read_record,
)
from pipeline.registry.load import get_aliases
from pipeline.registry.register import CANDIDATE
from pipeline.storage.redact import first_line
from pipeline.tracking.client import StoreError, StoreRejection, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
_NOT_COMPLETED = (
    "%s: version %s is the champion, but not everything could be noted: %s; the next promotion "
    "repairs that"
)


def carry_out(
    client: MlflowClient,
    uri: str,
    decision: Decision,
    action: aliases.Action,
    previous: int | None,
    record: str,
) -> None:
    """Make the version of a recorded decision the champion, or change nothing.

    Raises as `move_champion`. A failure after the move is only reported: the next command repairs
    it.
    """
    move = Move(
        action,
        decision.champion_before,
        decision.version,
        decision.by,
        decision.at,
        decision.reasons[0],
        record,
    )
    name = decision.model
    try:
        with store_errors(uri), aliases.claim(client, name) as still_claimed:
            if not is_open(client, record):
                raise UserError(
                    f"{name}: the record of this decision was closed or deleted before the move; "
                    "nothing was changed; run the same command again"
                )
            aliases.move_champion(client, uri, name, move, previous, still_claimed)
            try:
                _complete(client, uri, decision, record)
            except Exception as error:  # the champion has moved all the same
                _LOG.warning(_NOT_COMPLETED, name, decision.version, first_line(error))
    except MoveUnfinishedError:
        raise  # the open record shows it
    except (UserError, OutageError) as error:
        with contextlib.suppress(Exception):
            end_record(client, record, "FAILED")
        if isinstance(error, StoreError | StoreRejection):
            raise type(error)(f"{name}: the champion was not changed: {error}") from None
        raise


def unfinished_move(client: MlflowClient, name: str) -> Move | None:
    """Return the last move of a model if it is not completed: under way, or killed."""
    moves = aliases.read_moves(client, name)
    if moves and moves[-1].record and is_open(client, moves[-1].record):
        return moves[-1]
    return None


def recover(client: MlflowClient, uri: str, name: str) -> bool:
    """Complete or undo a move that was killed, with a warning; return whether there was one.

    Waits for one that is under way. Records of processes that died before a move are ended. Raises
    UserError if waiting lasts too long, and errors of the store.
    """
    found = unfinished_move(client, name) is not None
    if not found and not abandoned_records(client, name):
        return False
    with aliases.claim(client, name) as still_claimed:
        move = unfinished_move(client, name)
        if move is not None:  # else it was under way and has ended
            _recover(client, uri, name, move, still_claimed)
        moved = {item.record for item in aliases.read_moves(client, name)}
        for record in abandoned_records(client, name):
            if record not in moved:
                end_record(client, record, "KILLED")
                _LOG.warning("%s: %s was interrupted before a move; it is closed", name, record)
    return found


def _recover(
    client: MlflowClient, uri: str, name: str, move: Move, still_claimed: Callable[[], None]
) -> None:
    current = get_aliases(client, uri, name)
    still_claimed()
    if current.get(CHAMPION) == move.after:
        _complete(client, uri, _decision_of(client, name, move), move.record)
        done = "was completed"
    else:
        aliases.undo_move(client, name, move, _previous_before(client, name, move, current))
        end_record(client, move.record, "KILLED")
        done = "was undone; the champion had not moved"
    _LOG.warning(
        "%s: an interrupted move of the champion to version %s, by %s at %s, %s",
        name,
        move.after,
        move.by,
        move.at,
        done,
    )


def _previous_before(
    client: MlflowClient, name: str, move: Move, current: Mapping[str, int]
) -> int | None:
    """Return ``previous`` as it was before a move that has not reached the champion.

    The record of the decision has it. If that cannot be read, it follows from the other moves,
    which do not know an alias that was set by other means.
    """
    try:
        return read_record(client, move.record).previous_before
    except Exception:  # stores raise errors of many types
        moves = [item for item in aliases.read_moves(client, name) if item != move]
        stack = aliases.champions(moves, current)
        return stack[-2] if len(stack) > 1 else None


def _decision_of(client: MlflowClient, name: str, move: Move) -> Decision:
    """Return the decision behind a move, without its figures if the record cannot be read."""
    try:
        return read_record(client, move.record)
    except Exception:  # stores raise errors of many types
        return Decision(
            model=name,
            verdict="rolled back" if move.action == "rollback" else "promoted",
            reasons=[move.reason],
            version=move.after,
            champion_before=move.before,
            previous_before=None,
            by=move.by,
            at=move.at,
            machine="",
        )


def _complete(client: MlflowClient, uri: str, decision: Decision, record: str) -> None:
    """Do what follows after the champion has moved."""
    tag_version(client, decision, record)
    if get_aliases(client, uri, decision.model).get(CANDIDATE) == decision.version:
        client.delete_registered_model_alias(decision.model, CANDIDATE)
    end_record(client, record, "FINISHED")


def tag_version(client: MlflowClient, decision: Decision, record: str) -> None:
    """Describe a decision at its version, since runs may be deleted."""
    gain = (decision.figures or {}).get("gain") or {}
    values = {
        "verdict": decision.verdict,
        "at": decision.at,
        "by": decision.by,
        "from": str(decision.champion_before or "none"),
        "reasons": "; ".join(decision.reasons)[:4000],
        "record": record,
        **{f"gain.{part}": f"{value:.6g}" for part, value in gain.items() if value is not None},
    }
    for key, value in values.items():
        client.set_model_version_tag(
            decision.model, str(decision.version), f"promotion.{key}", value
        )
