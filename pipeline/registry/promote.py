"""Which version is champion: moving the alias, going back, and a trail of who did what when."""

from __future__ import annotations

import datetime
import getpass
import json
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError
from pipeline.registry.load import check_version, known_aliases
from pipeline.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous"


class Promotion(NamedTuple):
    """What the aliases are afterwards; ``changed`` is False if they were so before."""

    name: str
    champion: int
    previous: int | None
    changed: bool


def promote(uri: str, name: str, version: int) -> Promotion:
    """Make a version the champion and the champion ``previous``; again is no change."""
    client = connect(uri)
    aliases = known_aliases(client, uri, name)
    check_version(client, name, version)
    old = aliases.get(CHAMPION)
    if old == version:
        return Promotion(name, version, aliases.get(PREVIOUS), changed=False)
    return _move(client, name, old, version, "promote")


def rollback(uri: str, name: str) -> Promotion:
    """Swap champion and previous."""
    client = connect(uri)
    aliases = known_aliases(client, uri, name)
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if previous is None:
        raise UserError(f"{name} has no previous champion to go back to")
    return _move(client, name, champion, previous, "rollback")


def _move(client: MlflowClient, name: str, old: int | None, new: int, action: str) -> Promotion:
    # The old champion gets its second name first: a cut between the two loses no version.
    if old is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(old))
    client.set_registered_model_alias(name, CHAMPION, str(new))
    _write_trail(client, name, old, new, action)
    return Promotion(name, new, old, changed=True)


def _write_trail(client: MlflowClient, name: str, old: int | None, new: int, action: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    when, who = now.isoformat(timespec="seconds"), _user()
    entry = {"action": action, "from": old, "to": new, "by": who, "at": when}
    client.set_registered_model_tag(name, f"promotion.{now:%Y%m%dT%H%M%S.%fZ}", json.dumps(entry))
    for key, value in {"at": when, "by": who, "from": old or "none", "action": action}.items():
        client.set_model_version_tag(name, str(new), f"promotion.{key}", str(value))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
