"""The problems of a source, one JSON object a line in a file beside the manifest.

The manifest has only their counts, so that a process that opens the set does not read the list.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import UserError
from pipeline.storage.durable import sync_file

PROBLEMS = "problems.jsonl"
MAX_LISTED_PROBLEMS = 20  # of each kind, on the terminal
MAX_CAUSES, OTHER_CAUSE = 1000, "other reasons"  # kept in memory
# Values in a reason: lists and objects, which may be cut off, texts in quotes, and numbers.
_VALUE = re.compile(
    r"[\[{].*\.\.\.$|[\[{].*[\]}]|'[^']*(?:'|\.\.\.$)|-?\d+(\.\d+)?|\b(True|False|None|nan)\b"
)
# Kinds of problems as manifests of format 1 name them, and their names now.
OLD_PROBLEM_KINDS = {"mended": "repaired", "member refused": "member skipped"}

ProblemKind = Literal[
    "member skipped",
    "image skipped",
    "box dropped",
    "box clipped",
    "duplicate box",
    "file unused",
    "repaired",
    "suspicious",
    "note",
    "near duplicate",
    "leak",
]
# Kinds that --strict permits, because nothing is lost and nothing may be a mistake of the source.
HARMLESS_KINDS: tuple[ProblemKind, ...] = ("note", "near duplicate")
_CURRENT_KINDS = {kind: kind for kind in get_args(ProblemKind)} | OLD_PROBLEM_KINDS
_KEYS = {"file", "kind", "reason"}


class Problem(BaseModel):
    """One fault of the source, and what was done about it.

    Near duplicates and leaks (a near duplicate in another split) are kept, and only reported. So is
    what is *suspicious*: probably a mistake, such as boxes in another unit. A *note* is about what
    is read without any loss or doubt. A reason begins with the object that it is about, if any, and
    a colon: ``annotation 7: unknown category 5``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    kind: ProblemKind
    reason: str
    objects: int = Field(default=0, ge=0, description="objects that are lost with what it is about")

    @field_validator("kind", mode="before")
    @classmethod
    def _rename_old_kind(cls, kind: Any) -> Any:
        return OLD_PROBLEM_KINDS.get(kind, kind) if isinstance(kind, str) else kind

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.reason}"

    @property
    def cause(self) -> str:
        """Return the reason without the object that it is about."""
        _, colon, cause = self.reason.partition(": ")
        return cause if colon else self.reason

    @property
    def lost_objects(self) -> int:
        """Return the number of objects of the source that are not in the set because of this."""
        return self.objects or int(self.kind == "box dropped")


class ProblemWriter:
    """Write problems to a file. Keeps their counts, and the first ones of each kind.

    ``causes`` counts the lost objects by cause.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[ProblemKind] = Counter()
        self.first: dict[ProblemKind, list[Problem]] = defaultdict(list)
        self.causes: Counter[str] = Counter()
        self._first_of_cause: dict[str, Problem] = {}  # with # for each value
        self._file = path.open("wb")

    def add(self, problems: Iterable[Problem]) -> None:
        """Append problems. Raises OSError."""
        for problem in problems:
            self.counts[problem.kind] += 1
            if len(self.first[problem.kind]) < MAX_LISTED_PROBLEMS:
                self.first[problem.kind].append(problem)
            if problem.lost_objects:
                self._count_cause(problem)
            line = json.dumps(problem.model_dump(exclude_defaults=True), ensure_ascii=False)
            self._file.write(f"{line}\n".encode())

    def _count_cause(self, problem: Problem) -> None:
        cause = problem.cause
        if cause not in self.causes and len(self.causes) >= MAX_CAUSES:
            cause = OTHER_CAUSE
        self.causes[cause] += problem.lost_objects
        self._first_of_cause.setdefault(_VALUE.sub("#", cause), problem)

    @property
    def lost_objects(self) -> int:
        """Return the number of objects of the source that are not in the set."""
        return self.causes.total()

    def commonest_cause(self) -> tuple[int, Problem]:
        """Return how many objects are lost for the commonest cause, and the first problem of it."""
        counts: Counter[str] = Counter()
        for cause, count in self.causes.items():  # causes that differ in values only are one
            counts[_VALUE.sub("#", cause)] += count
        ((cause, count),) = counts.most_common(1)
        return count, self._first_of_cause[cause]

    def close(self) -> None:
        """Finish the file, and delete it if there are no problems. Raises OSError."""
        with self._file:
            sync_file(self._file)
        if not self.counts:
            self.path.unlink()

    def format(self) -> str:
        """Return lines for the terminal: the number and the first problems of each kind."""
        lines = []
        for kind, count in sorted(self.counts.items(), key=lambda item: _format_order(item[0])):
            lines.append(f"problems: {count} x {kind}")
            lines += [f"  {problem.file}: {problem.reason}" for problem in self.first[kind]]
            if count > MAX_LISTED_PROBLEMS:
                lines.append(f"  ... and {count - MAX_LISTED_PROBLEMS} more, all in {PROBLEMS}")
        return "\n".join(lines) or "problems: none"


def _format_order(kind: ProblemKind) -> tuple[int, str]:
    """Put what is about the meaning of all boxes first, and what is harmless last."""
    return -1 if kind == "suspicious" else int(kind in HARMLESS_KINDS), kind


def parse_problems(lines: Iterable[bytes], path: str) -> Iterator[Problem]:
    """Yield the problem in each line of the file at ``path``. Raises UserError."""
    for number, line in enumerate(lines, 1):
        try:
            yield Problem.model_validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise UserError(f"{path}, line {number}: not a problem: {reason}") from None


def problem_kind(row: Mapping[str, Any]) -> ProblemKind | None:
    """Return the kind of a problem in a manifest of format 1 or 2; None if it is not a problem."""
    if row.keys() != _KEYS or not all(isinstance(value, str) for value in row.values()):
        return None
    return _CURRENT_KINDS.get(row["kind"])
