"""The categories of COCO: class names in the order of their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.coco_file.tree import Row
from pipeline.data.sources.values import read_id
from pipeline.errors import UserError

MAX_NAMED_CLASSES = 20


class Categories(NamedTuple):
    """Class names in order, the name of each id, and the integer id of each class, if all are."""

    classes: list[str]
    names: dict[str, str]
    ids: list[int] | None


def read_categories(rows: list[Row], path: Path, problems: list[Problem]) -> Categories:
    """Return the categories; those with the same name are merged. Raises UserError."""
    if not rows:
        raise UserError(f"--annotations {path}: the list of categories is empty")
    names: dict[str, str] = {}
    for row in rows:
        key, name = read_id(row.get("id")), _name(row.get("name"))
        if key is None or name is None:
            raise UserError(
                f"--annotations {path}: a category lacks its id or name, or they are not text or "
                f"numbers: {str(row)[:100]}"
            )
        if names.get(key, name) != name:
            raise UserError(
                f"--annotations {path}: category {key} is both {names[key]!r} and {name!r}; "
                "give each category its own id"
            )
        if key in names:
            problems.append(_problem(path, "note", f"category {key} is listed again"))
        names[key] = name
    first: dict[str, str] = {}
    for key in sorted(names, key=_order):
        if names[key] in first:
            reason = f"category {key} has the same name as {first[names[key]]}; merged"
            problems.append(_problem(path, "repaired", reason))
        first.setdefault(names[key], key)
    ids = [number for key in first.values() if (number := _integer(key)) is not None]
    return Categories(list(first), names, ids if len(ids) == len(first) else None)


def report_group(rows: list[Row], used: set[str], path: Path, problems: list[Problem]) -> None:
    """Note a category without boxes that only groups all others, as Roboflow writes it."""
    by_name = {name: row for row in rows if (name := _name(row.get("name"))) is not None}
    for name, row in by_name.items():
        others = [other for other in by_name if other != name]
        groups = {_name(by_name[other].get("supercategory")) for other in others}
        if not others or groups != {name} or read_id(row.get("id")) in used:
            continue
        remedy = ",".join(others) if len(others) <= MAX_NAMED_CLASSES else "with the other names"
        reason = f"class {name!r} has no box and only groups the others; --classes {remedy}"
        problems.append(_problem(path, "note", f"{reason} leaves it out"))


def _problem(path: Path, kind: Any, reason: str) -> Problem:
    return Problem(file=path.name, kind=kind, reason=reason)


def _name(value: Any) -> str | None:
    """Return a class name without blanks at its ends; None if it is not text or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def _integer(key: str) -> int | None:
    return int(key) if key.removeprefix("-").isdecimal() and key.isascii() else None


def _order(key: str) -> tuple[bool, int, str]:
    """Sort numbers by value, then other ids as text."""
    number = _integer(key)
    return number is None, number or 0, key
