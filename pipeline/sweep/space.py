"""Translate the search space of a recipe to Ray Tune's and check it against the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError

# Number of values by kind of domain; None: a list of any length.
DOMAIN_SIZES = {"uniform": 2, "loguniform": 2, "randint": 2, "choice": None}


def build_space(config: Config) -> dict[str, Any]:
    """Return Ray Tune domains by dotted field.

    Raises UserError for an empty space, an unknown field or kind, or a boundary of a domain that
    the configuration does not accept.
    """
    if not config.sweep.space:
        raise UserError("sweep.space is empty; give fields to search, as in configs/sweeps")
    domains = {}
    for field, spec in config.sweep.space.items():
        if field.split(".")[0] == "sweep":
            raise UserError(f"sweep.space.{field}: a sweep cannot search itself")
        domains[field] = _domain(field, spec)
        for value in next(iter(spec.values())):
            _check_value(config, field, value)
    return domains


def _domain(field: str, spec: Mapping[str, Any]) -> Any:
    from ray import tune

    kind, values = next(iter(spec.items()), ("", None))
    if len(spec) != 1 or kind not in DOMAIN_SIZES:
        raise UserError(
            f"sweep.space.{field}: expected one of {', '.join(DOMAIN_SIZES)}, got {spec!r}"
        )
    count = DOMAIN_SIZES[kind]
    if not isinstance(values, list) or not values or (count and len(values) != count):
        expected = "[low, high]" if count else "a list of values"
        raise UserError(f"sweep.space.{field}: {kind} takes {expected}, got {values!r}")
    return getattr(tune, kind)(values) if kind == "choice" else getattr(tune, kind)(*values)


def _check_value(config: Config, field: str, value: Any) -> None:
    # One field at a time: a trial draws all fields together, and one may depend on another.
    section, _, name = field.partition(".")
    fields = type(config).model_fields
    if section not in fields or name not in type(getattr(config, section)).model_fields:
        raise UserError(f"sweep.space.{field}: there is no such field; see --help")
    try:
        config.replace({field: value})
    except UserError as error:
        raise UserError(f"sweep.space.{field}: {error}") from None
