"""The arms of the benchmarks of accuracy: accepted, and no two of them the same training."""

import json
from typing import Any

import pytest

from benchmarks import assigners, training_options
from benchmarks.accuracy import MACHINE, ROOT, changed_fields
from pipeline.comparison.arms import build_arms, parse_arm
from pipeline.comparison.cells import identity
from pipeline.config import Config, read_recipe
from pipeline.trials.trial import trial_config

CASES = [
    *((assigners.RECIPES[name], assigners.ARMS) for name in assigners.RECIPES),
    *((training_options.recipe(name), training_options.arms(name)) for name in ("bccd", "cards")),
]


@pytest.mark.parametrize(("recipe", "arms"), CASES)
def test_arms_are_different_trainings(
    recipe: dict[str, Any], arms: dict[str, dict[str, Any]]
) -> None:
    places = {"data.train": "train", "data.val": "val"}
    config = Config().replace({**places, **MACHINE, **recipe})
    given = [parse_arm(f"{name}: {json.dumps(fields)}") for name, fields in arms.items()]
    built = build_arms(config, given, [])
    assert [arm.name for arm in built] == list(arms)
    assert len({identity(config, arm.params, ("train", "val")) for arm in built}) == len(arms)


def test_changed_fields_turn_one_recipe_into_another() -> None:
    other = Config.from_dict(read_recipe(ROOT / "configs" / "bccd.yaml"))
    proposal = {
        "model.backbone": "efficientnet_lite0",
        "model.init": "imagenet",
        "model.freeze_stages": 2,
        "model.anchor_ratios": [0.7, 1.0],
        "assign.name": "mutual_guidance_soft",
        "train.optimizer": "adamw",
        "train.epochs": 51,
    }
    recipe = Config().replace(proposal)
    changed = trial_config(recipe, changed_fields(recipe, other)).recorded()
    for section in ("model", "assign", "loss"):
        assert changed[section] == other.recorded()[section]
    for name in ("optimizer", "lr", "weight_decay", "epochs", "precision", "batch_size"):
        assert changed["train"][name] == other.recorded()["train"][name]
