"""Every recipe parses, builds, and states its command, hardware, time and expected result."""

from pathlib import Path

import pytest
import torch

from model import build_detector
from pipeline.config import Config, read_recipe
from pipeline.sweep.space import SearchSpace
from pipeline.training.trainer.trainer import build_loss

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


def test_recipes_exist() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_builds(path: Path) -> None:
    config = Config.from_dict(read_recipe(path))
    with torch.device("meta"):  # shapes without values, so large networks are cheap
        detector = build_detector(**config.model.network(), num_classes=3)
    assert build_loss(config, detector) is not None
    if config.sweep.space:
        assert set(SearchSpace(config).domains) == set(config.sweep.space)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_states_command_hardware_time_and_result(path: Path) -> None:
    text = path.read_text()
    for word in ("Command:", "Hardware:", "Time:", "Expected:", str(path.relative_to(ROOT))):
        assert word in text
