"""Early stopping, in isolation and in a whole training that is resumed."""

from pathlib import Path

import pytest

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.training.run_log import RunLog
from pipeline.training.session import LocalSession
from pipeline.training.trainer.early_stopping import EarlyStopping
from pipeline.training.worker import train_worker


def decisions(early_stopping: EarlyStopping, scores: list[float]) -> list[bool]:
    decided = []
    for score in scores:
        early_stopping.update(score)
        decided.append(early_stopping.should_stop)
    return decided


def test_stops_after_patience_evaluations_without_improvement() -> None:
    assert decisions(EarlyStopping(2), [0.1, 0.3, 0.3, 0.2, 0.4]) == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_rise_below_min_improvement_is_not_counted() -> None:
    assert decisions(EarlyStopping(2, 0.05), [0.1, 0.12, 0.14]) == [False, False, True]
    assert decisions(EarlyStopping(2, 0.05), [0.1, 0.12, 0.2]) == [False, False, False]


def test_never_stops_with_patience_0() -> None:
    assert not any(decisions(EarlyStopping(0), [0.3, 0.2, 0.1, 0.0]))


def test_state_round_trip() -> None:
    first, second = EarlyStopping(2), EarlyStopping(2)
    decisions(first, [0.3, 0.2])
    second.load(first.state())
    assert decisions(second, [0.1]) == [True]


def test_patience_needs_data_val() -> None:
    with pytest.raises(UserError, match=r"train.patience needs data.val"):
        Config.from_dict({"train": {"patience": 2}})


def test_training_stops_early_keeps_the_best_and_stays_stopped(
    small: Config, tmp_path: Path
) -> None:
    # A rise by 1.0 is impossible, so the second and third evaluations do not improve.
    change = {"train.patience": 2, "train.min_improvement": 1.0, "train.epochs": 50}
    config = small.replace({**change, "train.keep_checkpoints": 9})
    store, outcomes = CheckpointStore(tmp_path / "run"), []
    for _ in range(2):
        outcomes.append(train_worker(config, LocalSession(World(), store), RunLog(None)))
        assert [saved.step for saved in store.saved()] == [5, 10, 15]
        best = max(saved.meta.score for saved in store.saved())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].metrics["val/ap"] == best
