"""Early stopping, alone and in a whole training that is resumed."""

from pathlib import Path

import pytest

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.training.run_log import RunLog
from pipeline.training.session import LocalSession
from pipeline.training.trainer.early_stopping import Patience
from pipeline.training.worker import train_worker


def waits(patience: Patience, scores: list[float]) -> list[bool]:
    answers = []
    for score in scores:
        patience.saw(score)
        answers.append(patience.exhausted)
    return answers


def test_it_ends_after_so_many_evaluations_without_a_better_one() -> None:
    assert waits(Patience(2), [0.1, 0.3, 0.3, 0.2, 0.4]) == [False, False, False, True, False]


def test_a_small_rise_is_no_improvement() -> None:
    assert waits(Patience(2, 0.05), [0.1, 0.12, 0.14]) == [False, False, True]
    assert waits(Patience(2, 0.05), [0.1, 0.12, 0.2]) == [False, False, False]


def test_without_a_limit_it_never_ends() -> None:
    assert not any(waits(Patience(0), [0.3, 0.2, 0.1, 0.0]))


def test_it_goes_on_where_it_was() -> None:
    first, second = Patience(2), Patience(2)
    waits(first, [0.3, 0.2])
    second.load(first.state())
    assert waits(second, [0.1]) == [True]


def test_patience_needs_a_validation_set() -> None:
    with pytest.raises(UserError, match=r"train.patience needs data.val"):
        Config.from_dict({"train": {"patience": 2}})


def test_a_training_stops_early_keeps_the_best_and_stays_stopped(
    small: Config, tmp_path: Path
) -> None:
    # A rise by 1.0 is out of reach, so the second and third evaluations are in vain.
    change = {"train.patience": 2, "train.min_improvement": 1.0, "train.epochs": 50}
    config = small.replace({**change, "train.keep_checkpoints": 9})
    store, outcomes = CheckpointStore(tmp_path / "run"), []
    for _ in range(2):
        outcomes.append(train_worker(config, LocalSession(World(), store), RunLog(None)))
        assert [saved.step for saved in store.saved()] == [5, 10, 15]
        best = max(saved.meta["val/ap"] for saved in store.saved())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["metrics"]["val/ap"] == best
