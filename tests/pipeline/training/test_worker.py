"""The whole loop without Ray: it ends, resumes exactly, and chooses by the validation set."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import prepare
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.training.checkpoint import load_meta, load_state
from pipeline.training.progress import RunLog
from pipeline.training.session import LocalSession, local_session
from pipeline.training.worker import train_worker


class Killed(Exception):
    """Stands for the end of the process."""


class KilledAfter(LocalSession):
    """A session whose process dies right after its n-th checkpoint."""

    def __init__(self, config: Config, folder: Path, reports: int) -> None:
        super().__init__(config, folder)
        self.left = reports

    def report(self, *args: Any) -> None:
        super().report(*args)
        self.left -= 1
        if not self.left:
            raise Killed


def train(config: Config, folder: Path) -> dict[str, Any]:
    with local_session(config, folder) as session:
        return train_worker(config, session, RunLog(None))


def last_state(folder: Path) -> dict[str, Any]:
    return load_state(sorted(folder.glob("step-*"))[-1])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def test_training_ends_with_figures_and_a_checkpoint(small: Config, tmp_path: Path) -> None:
    outcome = train(small, tmp_path / "run")
    assert outcome["step"] in (5, 10)
    assert {"val/ap", "test/ap", "test/ap50"} <= set(outcome["metrics"])
    meta = load_meta(tmp_path / "run" / outcome["checkpoint"])
    assert meta["classes"] == outcome["classes"]
    assert meta["config"]["train"]["batch_size"] == 4


def test_a_killed_training_ends_with_the_same_weights(small: Config, tmp_path: Path) -> None:
    # Checkpoints in the middle of epochs; no validation, so that the last state is the chosen one.
    config = small.replace({"data.val": None, "train.checkpoint_every": 0.6})
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train_worker(config, KilledAfter(config, tmp_path / "killed", reports=2), RunLog(None))
    resumed = train(config, tmp_path / "killed")
    assert_equal(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))
    assert whole["metrics"] == resumed["metrics"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (("--seed", "9"), "is not the data that this run was begun with"),
        (("--classes", "star,circle,cross,square,triangle"), "star, circle.*circle, cross"),
    ],
)
def test_other_data_under_the_same_name_is_refused(
    small: Config, tmp_path: Path, extra: tuple[str, str], expected: str
) -> None:
    def prepared(*arguments: str) -> Config:
        base = ("--source", "shapes", "--size", "64", "--count", "8")
        prepare.main([*base, "--out", str(tmp_path / "data"), "--overwrite", *arguments])
        only = {"data.val": None, "data.test": None, "train.epochs": 1}
        return small.replace({**only, "data.train": str(tmp_path / "data")})

    train(prepared(), tmp_path / "run")
    with pytest.raises(UserError, match=expected):
        train(prepared(*extra), tmp_path / "run")


def test_the_best_checkpoint_is_chosen_not_the_last(small: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = train(small, folder)
    with local_session(small, folder) as session:
        scores = {item.metrics["step"]: item.metrics["val/ap"] for item in session.kept()}
    assert outcome["metrics"]["val/ap"] == max(scores.values())
    assert scores[outcome["step"]] == max(scores.values())
