"""The aliases ``champion`` and ``previous`` of a registered model, and the trail of their moves.

MLflow moves an alias whatever it was before. Two promotions at the same time would both succeed and
one would be lost. Therefore a move happens under a claim, a tag of the registered model: who sets a
claim and then reads no other has the model to itself, since of two claims at least the later one
reads both. Under the claim, the champion must still be the one that the decision was about.

Every move is one more tag, ``promotion.TIME``, which is written before the aliases move;
`champions` follows them.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import logging
import platform
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import OutageError, UserError
from pipeline.registry.load import get_aliases
from pipeline.storage.redact import first_line
from pipeline.tracking import is_rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
CHAMPION, PREVIOUS = "champion", "previous"
Action = Literal["promote", "force", "rollback"]
_MOVE, _CLAIM = "promotion.", "promotion-claim."
_CLAIM_SECONDS = 30.0  # a move takes seconds: after this, the claim is of a process that has ended
_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.5
_REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class Move:
    """A move of ``champion``: who, when (UTC, ISO 8601), why, and where the decision is recorded.

    ``before`` and ``after`` are versions. Moves before decisions were recorded have no ``record``.
    """

    action: Action
    before: int | None
    after: int
    by: str
    at: str
    reason: str = ""
    record: str = ""

    def encode(self) -> str:
        """Return the move as JSON."""
        content: dict[str, Any] = {"action": self.action, "from": self.before, "to": self.after}
        content |= {"by": self.by, "at": self.at, "reason": self.reason, "record": self.record}
        return json.dumps(content)

    @classmethod
    def parse(cls, text: str) -> Move:
        """Read a move from JSON."""
        content = json.loads(text)
        return cls(
            content["action"],
            content["from"],
            content["to"],
            content["by"],
            content["at"],
            content.get("reason", ""),
            content.get("record", ""),
        )


class ChampionChangedError(UserError):
    """Another promotion has moved the champion since the decision was made."""


class MoveUnfinishedError(OutageError):
    """The registry stopped responding during a move, which may be done, half done or not done."""


def read_moves(client: MlflowClient, name: str) -> list[Move]:
    """Return the moves of the champion of a model, oldest first."""
    tags: Mapping[str, str] = client.get_registered_model(name).tags
    return [Move.parse(tags[key]) for key in sorted(tags) if key.startswith(_MOVE)]


def champions(moves: Sequence[Move], aliases: Mapping[str, int]) -> list[int]:
    """Return the champions that a rollback goes back through, the current one last.

    A promotion adds a version; a rollback removes the bad ones, so that the next one goes further
    back. An alias that was moved by other means counts too.
    """
    stack: list[int] = []
    for move in moves:
        if move.before is not None:
            _go_to(stack, move.before)
        if move.action == "rollback":
            _go_to(stack, move.after)
        else:
            stack.append(move.after)
    if not stack and PREVIOUS in aliases:
        stack.append(aliases[PREVIOUS])
    if CHAMPION in aliases:
        _go_to(stack, aliases[CHAMPION])
    return stack


def _go_to(stack: list[int], version: int) -> None:
    """Remove what is above a version in the stack; add it if it is not there."""
    if version in stack:
        while stack[-1] != version:
            stack.pop()
    else:
        stack.append(version)


def move_champion(
    client: MlflowClient,
    uri: str,
    name: str,
    move: Move,
    previous: int | None,
    still_claimed: Callable[[], None],
) -> None:
    """Make ``move.after`` the champion and set ``previous``, or change nothing, under a `claim`.

    Raises ChampionChangedError if the champion is not ``move.before`` any more, OutageError if the
    registry does not respond, and MoveUnfinishedError if a half move cannot be undone then.
    """
    aliases = get_aliases(client, uri, name)
    if aliases.get(CHAMPION) != move.before:
        now = aliases.get(CHAMPION)
        raise ChampionChangedError(
            f"{name}: {'no version' if now is None else f'version {now}'} is the champion now, "
            f"no longer {'none' if move.before is None else f'version {move.before}'}; nothing "
            "was changed; run the same command again to decide about the new state"
        )
    with _undone(client, name, move, aliases.get(PREVIOUS)):
        client.set_registered_model_tag(name, _key(move), move.encode())
        _set_alias(client, name, PREVIOUS, previous)
        still_claimed()
        client.set_registered_model_alias(name, CHAMPION, str(move.after))


def now() -> str:
    """Return the time as ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def user() -> str:
    """Return the name of the user of this process, by the environment or the system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def undo_move(client: MlflowClient, name: str, move: Move, previous: int | None) -> None:
    """Remove a move from the trail, and set ``previous`` as it was; the champion has not moved."""
    _set_alias(client, name, PREVIOUS, previous)
    client.delete_registered_model_tag(name, _key(move))


@contextlib.contextmanager
def _undone(client: MlflowClient, name: str, move: Move, previous: int | None) -> Iterator[None]:
    """Undo a move whose block fails or is interrupted.

    If the champion has moved and only the response was lost, nothing has failed. Raises
    MoveUnfinishedError if the registry does not respond to that either.
    """
    try:
        yield
    except BaseException as error:
        try:
            champion = client.get_registered_model(name).aliases.get(CHAMPION)
            moved = champion is not None and int(champion) == move.after
            if not moved:
                undo_move(client, name, move, previous)
        except Exception:
            if not isinstance(error, Exception):
                raise error from None
            raise MoveUnfinishedError(
                f"{name}: it is not known whether the champion was changed: {first_line(error)}; "
                "run the same command again when the registry responds: it completes or undoes "
                "what was begun"
            ) from error
        if not isinstance(error, Exception):
            raise
        if not moved:
            kind = UserError if is_rejected(error) else OutageError
            raise kind(f"{name}: the champion was not changed: {first_line(error)}") from error


def _set_alias(client: MlflowClient, name: str, alias: str, version: int | None) -> None:
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, str(version))


@contextlib.contextmanager
def claim(client: MlflowClient, name: str) -> Iterator[Callable[[], None]]:
    """Hold the claim of a model; yields a function that raises UserError if it was lost.

    Waits for other claims, and ignores one that stays for longer than any move takes.
    """
    key = f"{_CLAIM}{uuid.uuid4().hex}"
    first_seen: dict[str, float] = {}  # of other claims, by the clock of this process
    began, reported = time.monotonic(), False
    until = began + _CLAIM_SECONDS + _PATIENCE_SECONDS
    while True:
        value = {"by": f"{user()} on {platform.node()}", "at": now()}
        client.set_registered_model_tag(name, key, json.dumps(value))
        others = _other_claims(client, name, key, first_seen)
        if not others:
            break
        client.delete_registered_model_tag(name, key)
        if time.monotonic() > until:
            raise UserError(f"{name} is being promoted by {others[0]}; try again when that ended")
        if not reported and time.monotonic() > began + _REPORT_SECONDS:
            reported = True
            _LOG.warning(
                "%s is being promoted by %s; waiting until that ends or its claim expires",
                name,
                others[0],
            )
        time.sleep(random.SystemRandom().uniform(0.1, 1.0) * _PAUSE_SECONDS)

    def still_claimed() -> None:
        if key not in client.get_registered_model(name).tags:
            raise UserError("this promotion was slow, and another one has taken its turn")

    try:
        yield still_claimed
    finally:
        with contextlib.suppress(Exception):  # it expires
            client.delete_registered_model_tag(name, key)


def _other_claims(
    client: MlflowClient, name: str, own: str, first_seen: dict[str, float]
) -> list[str]:
    """Return who else claims the model; delete claims that were seen for too long."""
    others = []
    for key, text in client.get_registered_model(name).tags.items():
        if not key.startswith(_CLAIM) or key == own:
            continue
        if time.monotonic() - first_seen.setdefault(key, time.monotonic()) > _CLAIM_SECONDS:
            with contextlib.suppress(Exception):  # another process has deleted it
                client.delete_registered_model_tag(name, key)
        else:
            others.append(json.loads(text)["by"])
    return others


def _key(move: Move) -> str:
    """Return the tag of a move; the order of tags is that of time."""
    at = datetime.datetime.fromisoformat(move.at)
    return f"{_MOVE}{at.strftime('%Y%m%dT%H%M%S.%fZ')}"
