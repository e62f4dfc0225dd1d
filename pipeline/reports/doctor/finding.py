"""A finding: what will hurt a training, how badly, and its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_LISTED_NAMES = 8


@dataclass(frozen=True)
class Finding:
    """One thing that will hurt; programs recognise it by its ``check``."""

    severity: Severity
    check: str
    text: str
    remedy: str
    details: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def percent(part: float, whole: float) -> str:
    """Return a share in percent with the digits that matter; "0 %" of nothing."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 or not share else f"{share:.2g} %"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MAX_LISTED_NAMES
    return ", ".join(names[:MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
