"""What a comparison gives to its trainings, without training."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from model import build_detector
from pipeline.comparison.arms import Arm
from pipeline.comparison.compare import compare
from pipeline.config import Config
from pipeline.trials.trial_records import Params


def test_trainings_get_absolute_paths_and_the_arm_its_given_name(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Params] = {}

    def train_given(_settings: object, trials: Mapping[str, Params], *_: object) -> None:
        found.update(trials)
        raise KeyboardInterrupt

    module = sys.modules[compare.__module__]
    monkeypatch.setattr("pipeline.trials.given.train_given", train_given)
    monkeypatch.setattr(module, "ray_cluster", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.chdir(tmp_path)
    torch.save(build_detector(**small.model.network(), num_classes=3).state_dict(), "a.pth")
    arms = [Arm("default", {}), Arm("a.pth", {"model.init": "a.pth"})]
    for _ in range(2):  # the second resumes, with the same trainings
        with pytest.raises(KeyboardInterrupt):
            compare(small.replace({"ray.enabled": True}), run="one", arms=arms, seeds=1)
        assert len(found) == 2
    (name,) = (name for name in found if name.startswith("a_pth-s0-"))
    assert found[name]["model.init"] == str(tmp_path / "a.pth")
