"""The champion alias: promotion, rollback, and a log of who moved it and when."""

from __future__ import annotations

import datetime
import getpass
import json
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError
from pipeline.registry.load import check_version, get_aliases
from pipeline.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous"


class Promotion(NamedTuple):
    """The versions that the aliases point to; ``changed`` is False if they already did."""

    name: str
    champion: int
    previous: int | None
    changed: bool


def promote(uri: str, name: str, version: int) -> Promotion:
    """Make a version the champion, and the former champion ``previous``.

    Promoting the champion changes nothing. Raises UserError if the version does not exist.
    """
    client = connect(uri)
    aliases = get_aliases(client, uri, name)
    check_version(client, name, version)
    old = aliases.get(CHAMPION)
    if old == version:
        return Promotion(name, version, aliases.get(PREVIOUS), changed=False)
    return _move_aliases(client, name, old, version, "promote")


def rollback(uri: str, name: str) -> Promotion:
    """Swap champion and previous. Raises UserError if there is no previous champion."""
    client = connect(uri)
    aliases = get_aliases(client, uri, name)
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if previous is None:
        raise UserError(f"{name} has no previous champion to roll back to")
    return _move_aliases(client, name, champion, previous, "rollback")


def _move_aliases(
    client: MlflowClient, name: str, old: int | None, new: int, action: str
) -> Promotion:
    # The old champion gets its alias first, so an interruption loses neither version.
    if old is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(old))
    client.set_registered_model_alias(name, CHAMPION, str(new))
    _record_promotion(client, name, old, new, action)
    return Promotion(name, new, old, changed=True)


def _record_promotion(
    client: MlflowClient, name: str, old: int | None, new: int, action: str
) -> None:
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
