"""The values of one searched field: a list or a range, and when the field is searched at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import optuna

LISTS, RANGES = ("choice", "grid"), ("uniform", "loguniform", "int")
FORMER_KINDS = {
    "randint": "int, whose upper end is included",
    "quniform": "uniform with step",
    "qrandint": "int with step",
}


@dataclass(frozen=True)
class Domain:
    """The values of a field.

    ``values`` are all values of a list (``choice``, ``grid``), or the lowest and the highest of a
    range. ``step`` is the distance of the values of a range. The field is searched only if each
    field of ``when`` has one of the values given there.
    """

    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, spec: Mapping[str, Any]) -> Domain:
        """Read the specification of the field ``name`` in a recipe. Raises UserError."""
        rest = {key: value for key, value in spec.items() if key not in ("step", "when")}
        kind, values = next(iter(rest.items()), ("", None))
        if len(rest) != 1 or kind not in (*LISTS, *RANGES):
            known = ", ".join((*LISTS, *RANGES))
            hint = f"; use {FORMER_KINDS[kind]}" if kind in FORMER_KINDS else ""
            raise _mistake(name, f"expected one of {known}, got {dict(spec)!r}{hint}")
        if not isinstance(values, list) or not values:
            shape = "a list of values" if kind in LISTS else "[low, high]"
            raise _mistake(name, f"{kind} takes {shape}, got {values!r}")
        when = _conditions(name, spec.get("when"))
        if kind in LISTS:
            if spec.get("step") is not None:
                raise _mistake(name, f"step is for ranges, not for {kind}")
            if len(set(map(json.dumps, values))) < len(values):
                raise _mistake(name, f"{kind} repeats a value: {values!r}")
            return cls(kind, tuple(values), None, when)
        return cls(kind, *_range(name, kind, values, spec.get("step")), when)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw a value for a trial of Optuna."""
        if self.kind in LISTS:
            by_text = {_text(value): value for value in self.values}
            return by_text[trial.suggest_categorical(name, list(by_text))]
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(name, low, high, step=int(self.step or 1))
        return trial.suggest_float(name, low, high, step=self.step, log=self.kind == "loguniform")

    def optuna_value(self, value: Any) -> Any:
        """Return a value as Optuna stores it."""
        return _text(value) if self.kind in LISTS else value

    def all_values(self) -> list[Any] | None:
        """Return all values in order, or None if there is no end of them."""
        if self.kind in LISTS:
            return list(self.values)
        low, high = self.values
        step = self.step or (1 if self.kind == "int" else None)
        if step is None:
            return None
        values = [low + index * step for index in range(round((high - low) / step) + 1)]
        return values if self.kind == "int" else [float(f"{value:.12g}") for value in values]

    def __contains__(self, value: Any) -> bool:
        """Return whether a value is in the list, or in the range and on one of its steps."""
        if self.kind in LISTS:
            return _text(value) in map(_text, self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.values
        step = self.step or (1 if self.kind == "int" else None)
        steps = (value - low) / step if step else 0.0
        return bool(low <= value <= high and abs(steps - round(steps)) < 1e-6)


def _range(
    name: str, kind: str, values: list[Any], step: Any
) -> tuple[tuple[float, float], float | None]:
    """Return the checked ends and step of a range. Raises UserError."""
    if len(values) != 2:
        raise _mistake(name, f"{kind} takes [low, high], got {values!r}")
    types: Any = int if kind == "int" else int | float
    given = [*values, *([] if step is None else [step])]
    numbers = [v for v in given if isinstance(v, types) and not isinstance(v, bool)]
    if len(numbers) < len(given) or not all(map(math.isfinite, numbers)):
        raise _mistake(name, f"{kind} takes {'whole ' if kind == 'int' else ''}numbers: {given!r}")
    low, high = values
    if low >= high:
        raise _mistake(name, f"the range [{low}, {high}] is empty or reversed")
    if kind == "loguniform" and low <= 0:
        raise _mistake(name, f"loguniform starts above 0, got {low}")
    if step is not None:
        if kind == "loguniform":
            raise _mistake(name, "loguniform has no step")
        steps = (high - low) / step if step > 0 else 0.0
        if steps < 1 or abs(steps - round(steps)) > 1e-6:
            raise _mistake(name, f"step {step} does not divide the range [{low}, {high}]")
    return (low, high), step


def _conditions(name: str, when: Any) -> dict[str, tuple[Any, ...]]:
    if when is None:
        return {}
    if not isinstance(when, dict) or not when:
        raise _mistake(name, f"when takes a mapping of fields to values, got {when!r}")
    return {
        key: tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()
    }


def _text(value: Any) -> Any:
    """Return a value of a list as Optuna accepts it: lists and mappings as JSON."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _mistake(name: str, text: str) -> UserError:
    return UserError(f"sweep.space.{name}: {text}")
