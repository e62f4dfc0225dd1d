"""The arms of a comparison: variants of a recipe, each with a name and the fields that it sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.safe_yaml import load_yaml
from pipeline.trials.relevance import check_field, explain_useless, field_value, matters
from pipeline.trials.trial_records import Params

MAX_NAME = 60  # characters
# Fields that no arm sets, apart from those that no sweep searches.
_FIXED = {
    "train.seed": "every arm is trained on the same seeds; give their number as --seeds",
    "train.patience": "every arm is trained to the end of its schedule",
    "train.min_improvement": "every arm is trained to the end of its schedule",
}


@dataclass(frozen=True)
class Arm:
    """A variant of the recipe: its name, and the values that it sets by dotted field."""

    name: str
    params: Params


@dataclass(frozen=True)
class Axis:
    """A field and the values that arms take of it."""

    field: str
    values: list[Any]


def parse_vary(text: str) -> Axis:
    """Parse ``FIELD=VALUE,VALUE,...``, whose values are YAML. Raises UserError."""
    field, mark, values = (part.strip() for part in text.partition("="))
    if not (field and mark and values):
        raise UserError(
            f"--vary {text}: expected FIELD=VALUE,VALUE,..., as assign.name=atss,sim_ota"
        )
    try:
        parsed = load_yaml(f"[{values}]")
    except ValueError as error:
        raise UserError(f"--vary {text}: not valid YAML values: {error}") from None
    return Axis(field, list(parsed))


def parse_arm(text: str) -> Arm:
    """Parse ``NAME: {FIELD: VALUE, ...}``, which is YAML. Raises UserError."""
    form = "expected 'NAME: {FIELD: VALUE, ...}', as 'soft: {assign.name: mutual_guidance_soft}'"
    try:
        tree = load_yaml(text)
    except ValueError as error:
        raise UserError(f"--arm {text}: not valid YAML: {error}; {form}") from None
    if not isinstance(tree, dict) or len(tree) != 1:
        raise UserError(f"--arm {text}: {form}")
    ((name, params),) = tree.items()
    params = {} if params is None else params
    if not isinstance(params, dict) or not all(isinstance(field, str) for field in params):
        raise UserError(f"--arm {text}: {form}")
    return Arm(str(name), params)


def build_arms(config: Config, given: Sequence[Arm], varied: Sequence[Axis]) -> list[Arm]:
    """Return the arms: each given one, or the recipe, with each combination of varied values.

    A varied field that does not matter in a combination is absent from it, and combinations that
    are then equal are one arm. Raises UserError for a field that arms cannot differ in, one that
    never matters, a value that the configuration does not accept, and fewer than two arms.
    """
    _check_fields(given, varied)
    found: dict[str, Arm] = {}
    mattering: set[str] = set()
    for base in given or [Arm("", {})]:
        for field in base.params:
            if not _matters(config, field, base.params):
                assigner = base.params.get("assign.name", config.assign.name)
                raise UserError(f"--arm {base.name}: {field}: {explain_useless(field, [assigner])}")
        for values in product(*(axis.values for axis in varied)):
            chosen = dict(zip((axis.field for axis in varied), values, strict=True))
            point = {**base.params, **chosen}
            kept = {field: chosen[field] for field in chosen if _matters(config, field, point)}
            mattering |= kept.keys()
            name = ", ".join([*([base.name] if base.name else []), *_labels(kept, varied)])
            arm = Arm(name, _accepted(config, name, {**base.params, **kept}))
            if name in found and kept == chosen:
                raise UserError(f"arm {name!r} is given twice")
            found.setdefault(name, arm)
    for axis in varied:
        if axis.field not in mattering:
            assigners = sorted(
                {field_value(config.replace(a.params), "assign.name") for a in found.values()}
            )
            raise UserError(f"--vary {axis.field}: {explain_useless(axis.field, assigners)}")
    if len(found) < 2:
        only = ", ".join(found) or "the recipe itself"
        raise UserError(
            f"there is one arm only ({only}); give two or more values as --vary FIELD=A,B, or "
            "two or more --arm"
        )
    return list(found.values())


def _check_fields(given: Sequence[Arm], varied: Sequence[Axis]) -> None:
    names = [arm.name for arm in given]
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise UserError(f"--arm {name!r}: a name has 1 to {MAX_NAME} printable characters")
        if names.count(name) > 1:
            raise UserError(f"--arm {name}: the name is given twice")
    fields = [axis.field for axis in varied]
    for field in fields:
        _check_field(field, f"--vary {field}")
        if fields.count(field) > 1:
            raise UserError(f"--vary {field}: given twice; list all its values in one")
    for arm in given:
        for field in arm.params:
            _check_field(field, f"--arm {arm.name}: {field}")
            if field in fields:
                raise UserError(f"--arm {arm.name}: {field} is also varied; give it in one place")


def _check_field(field: str, source: str) -> None:
    if field in _FIXED:
        raise UserError(f"{source}: {_FIXED[field]}")
    check_field(field, source)


def _matters(config: Config, field: str, params: Mapping[str, Any]) -> bool:
    def value(name: str) -> Any:
        return params[name] if name in params else field_value(config, name)

    try:
        return matters(field, value)
    except ValueError:  # an unknown assigner, which the configuration reports
        return True


def _accepted(config: Config, name: str, params: Params) -> Params:
    """Return the values as the configuration stores them."""
    try:
        tree = config.replace(params).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"arm {name!r}: {error}") from None
    accepted = {}
    for field in params:
        section, _, key = field.partition(".")
        accepted[field] = tree[section][key]
    return accepted


def _labels(values: Params, varied: Sequence[Axis]) -> list[str]:
    """Return what names an arm: the value alone if only one field is varied."""
    if len(varied) == 1:
        return [str(value) for value in values.values()]
    short = [axis.field.partition(".")[2] for axis in varied]
    labels = []
    for field, value in values.items():
        key = field.partition(".")[2]
        key = key if short.count(key) == 1 else field
        labels.append(str(value) if field == "assign.name" else f"{key}={value}")
    return labels
