"""The cells of a comparison: one training per arm and seed, and fold.

A cell is known by a hash of everything that its result depends on. So a comparison that is resumed,
or that has other arms or more seeds, trains only what its folder does not contain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from model.options import ASSIGNER_OPTIONS, former_loss_options
from pipeline.comparison.arms import Arm
from pipeline.config import Config, RayConfig
from pipeline.errors import UserError
from pipeline.trials.relevance import field_value, matters
from pipeline.trials.trial import trial_config
from pipeline.trials.trial_records import Params

HASH_DIGITS = 12
MAX_PREFIX = 40  # characters of a cell's name that are taken from its arm
# Sections and fields that change neither a training nor its evaluation.
CHANGEABLE = (
    *("data.test", "data.loader_workers", "data.prefetch", "data.cache", "data.cache_gib"),
    *("data.retries", "data.max_bad_fraction", "data.allow_no_objects"),
    *("train.checkpoint_every", "train.checkpoint_steps", "train.checkpoint_minutes"),
    *("train.keep_checkpoints", "train.log_every", "train.profile_steps"),
    *("evaluate.every", "evaluate.batch_size", "evaluate.pictures"),
    *("promote", "sweep", "tracking", "registry"),
    # Batch norm sees the images of one worker, so their number changes the result.
    *(f"ray.{name}" for name in RayConfig.model_fields if name != "workers"),
)


@dataclass(frozen=True)
class Split:
    """The shard sets that a cell trains and is scored on, with the hashes of their content."""

    content: tuple[str, str]  # of train and val
    number: int | None = None  # None: those of the recipe
    params: Params | None = None  # data.train and data.val of a fold


@dataclass(frozen=True)
class Cell:
    """One training of a comparison. ``name`` is that of its trial."""

    arm: str
    seed: int
    fold: int | None
    name: str
    params: Params


def make_cells(
    config: Config,
    arms: Sequence[Arm],
    seeds: Iterable[int],
    folds: Sequence[Split],
    known: Collection[str] = (),
) -> list[Cell]:
    """Return the cells in the order in which they are trained: all arms of a seed and fold first.

    ``known`` are the names of trials in the folder; a cell with the hash of one has its name.
    Raises UserError if two arms are the same training.
    """
    names = {name.rpartition("-")[2]: name for name in known}
    cells: list[Cell] = []
    for seed in seeds:
        for fold in folds:
            arm_of: dict[str, str] = {}
            for arm in arms:
                params = {**arm.params, "train.seed": seed, **(fold.params or {})}
                digest = identity(config, params, fold.content)
                if other := arm_of.get(digest):
                    raise UserError(f"arms {other!r} and {arm.name!r} are the same training")
                arm_of[digest] = arm.name
                name = names.get(digest) or _name(arm.name, seed, fold.number, digest)
                cells.append(Cell(arm.name, seed, fold.number, name, params))
    return cells


def identity(config: Config, params: Params, content: tuple[str, str]) -> str:
    """Return a hash of all that the result of a training depends on.

    Fields with their default values do not count, so that a new field leaves it as it is. If the
    field changed what is trained, it is the former value that does not count. Another changed
    default is found when the comparison is resumed: its whole configuration is recorded.
    """
    tried = trial_config(config, params)
    chosen = ASSIGNER_OPTIONS[tried.assign.name].declared()
    tree = tried.recorded()
    defaults = Config().recorded()
    defaults["loss"] = Config().loss.options(tried.assign.name) | former_loss_options()
    if tried.assign.name == "sim_ota":
        defaults["loss"]["classification"] = "focal"  # its former one
    kept: dict[str, Any] = {"content": list(content), "assign.name": tried.assign.name}
    for section, fields in tree.items():
        for key, value in fields.items():
            field = f"{section}.{key}"
            default = defaults[section][key]
            if section == "assign" and key in chosen:
                option = chosen[key]
                value = option.default if value is None else value
                default = option.default if option.former is None else option.former
            if _counts(field, tried) and value != default:
                kept[field] = value
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _counts(field: str, config: Config) -> bool:
    """Return whether the result of a training can depend on a field with these values."""
    if field in CHANGEABLE or field.partition(".")[0] in CHANGEABLE:
        return False
    if field in ("data.train", "data.val"):  # their content counts
        return False
    section, _, name = field.partition(".")
    if section == "evaluate" and name != "protocol":
        return False
    return matters(field, lambda other: field_value(config, other))


def _name(arm: str, seed: int, fold: int | None, digest: str) -> str:
    prefix = re.sub(r"[^A-Za-z0-9]+", "_", arm)[:MAX_PREFIX].strip("_") or "arm"
    part = "" if fold is None else f"-f{fold}"
    return f"{prefix}-s{seed}{part}-{digest}"
