"""Read class names and their numbers: text as it is written, one name for each number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.values import decode_text
from pipeline.errors import UserError

MAX_SHOWN_CHARACTERS = 60


def read_names(names: Any, file: str) -> dict[int, str]:
    """Return the names by class number, of a list or a mapping. Raises UserError."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise UserError(f"{file}: names must be a list, or a mapping of numbers to names")
    known: dict[int, str] = {}
    for key, value in names.items():
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            shown = str(value)[:MAX_SHOWN_CHARACTERS]
            raise UserError(f"{file}: the name of class {key} must be text, not {shown}")
        try:
            number = int(key)
        except (TypeError, ValueError):
            raise UserError(
                f"{file}: names must be a list, or a mapping of numbers to names; "
                f"{str(key)[:MAX_SHOWN_CHARACTERS]!r} is not a number"
            ) from None
        if number in known:
            raise UserError(f"{file}: names has the number {number} twice")
        known[number] = str(value).strip()
    if not known or "" in known.values() or min(known) < 0:
        raise UserError(f"{file}: names has an empty name or a negative number, or is empty")
    return known


def parse_name_list(data: bytes, file: str) -> dict[int, str]:
    """Return the names in a text file, one a line, by their numbers from 0. Raises UserError."""
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text in UTF-8: {error}") from None
    lines = [line.strip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    if "" in lines:
        raise UserError(
            f"{file}: line {lines.index('') + 1} is empty; each line is the name of a class, in "
            "the order of their numbers"
        )
    return dict(enumerate(lines))


def repeated_names(names: Mapping[int, str], file: str) -> list[Problem]:
    """Return a problem for each name that several numbers have; they are one class."""
    numbers = defaultdict(list)
    for number in sorted(names):
        numbers[names[number]].append(str(number))
    return [
        Problem(
            file=file,
            kind="repaired",
            reason=f"classes {' and '.join(some)} are both named {name}; merged",
        )
        for name, some in numbers.items()
        if len(some) > 1
    ]
