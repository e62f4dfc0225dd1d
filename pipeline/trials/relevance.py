"""Which fields of the configuration can change the score of a trial, and under which conditions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from model.options import ASSIGNER_OPTIONS, assigner_options, loss_default
from pipeline.config import Config
from pipeline.errors import UserError

Values = Callable[[str], Any]
"""Returns the value of a dotted field."""

_NOT_SEARCHED = {
    "sweep": "a sweep cannot search itself",
    "tracking": "no score depends on it",
    "registry": "no score depends on it",
    "promote": "no score depends on it",
    "ray": "no score depends on it, apart from rounding",
    "evaluate": "it needs no training; `jobs.thresholds` searches it for any model",
    "train.seed": "the best of several seeds is luck, and not a setting",
    "data.train": "all trials train on one set",
    "data.allow_no_objects": "no score depends on it",
    "data.val": "all trials are compared on one set",
    "data.test": "the test set must not influence the selection",
    **dict.fromkeys(
        (
            "data.cache",
            "data.cache_gib",
            "data.loader_workers",
            "data.max_bad_fraction",
            "data.prefetch",
            "data.retries",
            "model.init_sha256",
            "train.channels_last",
            "train.checkpoint_every",
            "train.checkpoint_minutes",
            "train.checkpoint_steps",
            "train.compile",
            "train.keep_checkpoints",
            "train.log_every",
            "train.profile_steps",
            "train.skip_non_finite",
        ),
        "no score depends on it",
    ),
}
# Fields that only matter with some values of others: the others, and the test of their values.
_CONDITIONS: dict[str, tuple[tuple[str, ...], Callable[[Values], bool]]] = {
    "assign.sigma": (
        ("assign.name", "assign.classify_to_localize"),
        lambda value: bool(value("assign.classify_to_localize")),
    ),
    "loss.poly": (
        ("assign.name", "loss.classification"),
        lambda value: _loss(value, "classification") == "quality_focal",
    ),
    "loss.normaliser": (
        ("assign.name", "loss.classification"),
        lambda value: _loss(value, "classification") == "quality_focal",
    ),
    "loss.overlap_weight": (
        ("assign.name", "loss.overlap"),
        lambda value: _loss(value, "overlap") != "none",
    ),
    "data.close_mosaic": (
        ("data.mosaic", "data.mixup"),
        lambda value: value("data.mosaic") > 0 or value("data.mixup") > 0,
    ),
    "data.size_steps": (("data.sizes",), lambda value: bool(value("data.sizes"))),
    "data.zoom_out_max": (("data.zoom_out",), lambda value: value("data.zoom_out") > 0),
    "train.momentum": (("train.optimizer",), lambda value: value("train.optimizer") == "sgd"),
    "train.nesterov": (("train.optimizer",), lambda value: value("train.optimizer") == "sgd"),
    "train.lr_batch": (("train.lr_scaling",), lambda value: value("train.lr_scaling") != "none"),
    "train.min_improvement": (("train.patience",), lambda value: value("train.patience") > 0),
}


def why_not_searched(field: str) -> str | None:
    """Return why no sweep can search a field, or None if it can."""
    return _NOT_SEARCHED.get(field) or _NOT_SEARCHED.get(field.partition(".")[0])


def check_field(field: str, source: str) -> None:
    """Raise UserError, after ``source``, unless trials can differ in this field."""
    if reason := why_not_searched(field):
        raise UserError(f"{source}: {reason}")
    known = [
        f"{section}.{name}"
        for section, info in Config.model_fields.items()
        for name in getattr(info.annotation, "model_fields", {})
    ]
    if field not in known:
        near = difflib.get_close_matches(field, known, 1, 0.5)
        hint = f"did you mean {near[0]}" if near else "see --help"
        raise UserError(f"{source}: there is no such field; {hint}")


def field_value(config: Config, field: str) -> Any:
    """Return the value of a dotted field; of a number that is unset, the one in force."""
    section, _, name = field.partition(".")
    if section in ("model", "train"):
        return config.recorded()[section][name]
    return getattr(getattr(config, section), name)


def controls(field: str) -> tuple[str, ...]:
    """Return the fields on which it depends whether this one matters."""
    if field in _CONDITIONS:
        return _CONDITIONS[field][0]
    return ("assign.name",) if _is_option(field) else ()


def matters(field: str, value: Values) -> bool:
    """Return whether a score can depend on a field, given the values of its `controls`."""
    name = field.partition(".")[2]
    if _is_option(field) and name not in assigner_options(value("assign.name")):
        return False
    return field not in _CONDITIONS or _CONDITIONS[field][1](value)


def explain_useless(field: str, assigners: Iterable[str]) -> str:
    """Return why a field never matters with some assigners."""
    name = field.partition(".")[2]
    users = [who for who, options in ASSIGNER_OPTIONS.items() if name in options.declared()]
    if _is_option(field) and not set(assigners) & set(users):
        return f"not used by {', '.join(assigners)}; assigners that use it: {', '.join(users)}"
    return f"it has no effect with these values of {', '.join(controls(field))}"


def _is_option(field: str) -> bool:
    return field.startswith("assign.") and field != "assign.name"


def _loss(value: Values, option: str) -> Any:
    given = value(f"loss.{option}")
    return loss_default(option, value("assign.name")) if given is None else given
