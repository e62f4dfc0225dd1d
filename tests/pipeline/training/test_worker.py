"""The whole loop without Ray: it ends, resumes exactly, and selects by the validation set."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import prepare
from pipeline.checkpoints.format import load_meta, load_state
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.training import worker
from pipeline.training.outcome import Finished
from pipeline.training.run_log import RunLog
from pipeline.training.session import LocalSession
from pipeline.training.trainer.trainer import Trainer
from pipeline.training.worker import train_worker
from tests.pipeline.checkpoints.examples import write_format_2


class Killed(Exception):
    """Simulates the end of the process."""


class KilledAtStep(RunLog):
    """Ends the process after a step, before that is saved or evaluated."""

    def __init__(self, last: int) -> None:
        super().__init__(None)
        self.last = last

    def step(self, step: int, *args: Any) -> None:
        if step == self.last:
            raise Killed


def train(config: Config, folder: Path, log: RunLog | None = None) -> Finished:
    session = LocalSession(World(), CheckpointStore(folder))
    return train_worker(config, session, log or RunLog(None))


def last_state(folder: Path) -> dict[str, Any]:
    return load_state(sorted(folder.glob("step-*"))[-1])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


class EndedAtReport(LocalSession):
    """A trial that Ray Tune ends at its first report."""

    may_end_at_report = True

    def report(self, metrics: Mapping[str, float]) -> None:
        self.written = {item.step: item.meta.metrics for item in self.store.saved()}
        raise Killed


def test_reported_evaluation_is_in_its_checkpoint_where_a_report_may_end_the_training(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = CheckpointStore.add_evaluation

    def slow(*given: Any) -> None:
        time.sleep(0.3)
        add(*given)

    monkeypatch.setattr(CheckpointStore, "add_evaluation", slow)
    session = EndedAtReport(World(), CheckpointStore(tmp_path / "run"))
    with pytest.raises(Killed):
        train_worker(small, session, RunLog(None))
    assert "val/ap" in (session.written[5] or {})


def test_training_ends_with_metrics_and_a_checkpoint(small: Config, tmp_path: Path) -> None:
    outcome = train(small, tmp_path / "run")
    assert outcome.best_step in (5, 10)
    assert outcome.total_steps == 10
    assert {"val/ap", "test/ap", "test/ap50"} <= set(outcome.metrics)
    meta = load_meta(tmp_path / "run" / outcome.checkpoint)
    assert meta.classes == outcome.classes
    assert meta.config["train"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("change", "killed_at", "resumed_at"),
    [
        # Twice, between checkpoints in the middle of epochs; before the first; before the last.
        ({"train.checkpoint_steps": 3}, [5, 8], [3, 6]),
        ({"data.val": None, "data.test": None, "train.checkpoint_steps": 3}, [1, 10], [0, 9]),
        ({"train.precision": "bf16", "train.checkpoint_steps": 3}, [5], [3]),
        # With a scale of the loss, which changes in the first steps.
        ({"train.precision": "fp16", "train.checkpoint_steps": 3}, [5], [3]),
    ],
)
def test_killed_training_resumes_bit_identically(
    small: Config,
    tmp_path: Path,
    change: dict[str, Any],
    killed_at: list[int],
    resumed_at: list[int],
) -> None:
    config = small.replace({"evaluate.every": 1.0, **change})
    whole = train(config, tmp_path / "whole")
    for step, expected in zip(killed_at, resumed_at, strict=True):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", KilledAtStep(step))
        saved = [item.step for item in CheckpointStore(tmp_path / "killed").saved()]
        assert max(saved, default=0) == expected
    resumed = train(config, tmp_path / "killed")
    assert_equal(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))
    assert whole == resumed
    kept = [[p.name for p in sorted((tmp_path / d).iterdir())] for d in ("whole", "killed")]
    assert kept[0] == kept[1]


class MoveLog(KilledAtStep):
    """Keeps what `RunLog.moved` reports."""

    def moved(self, before: str, now: str) -> None:
        self.places = (before, now)


def test_resume_in_another_precision_is_reported(small: Config, tmp_path: Path) -> None:
    config = small.replace({"train.checkpoint_steps": 3, "data.val": None, "data.test": None})
    with pytest.raises(Killed):
        train(config, tmp_path, KilledAtStep(5))
    meta = CheckpointStore(tmp_path).saved()[-1].meta
    assert (meta.device, meta.precision) == ("cpu", "fp32")
    same, other = MoveLog(5), MoveLog(8)
    with pytest.raises(Killed):
        train(config, tmp_path, same)
    assert not hasattr(same, "places")
    with pytest.raises(Killed):
        train(config.replace({"train.precision": "bf16"}), tmp_path, other)
    assert other.places == ("cpu in fp32", "cpu in bf16")


def test_training_that_began_in_fp32_is_resumed_in_it(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"train.checkpoint_steps": 3, "data.val": None, "data.test": None}
    config = small.replace({**plain, "train.precision": "auto"})
    for cpu, folder, expected in (({}, "old", "fp32"), ({"avx512_bf16": True}, "new", "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda cpu=cpu: cpu)
        with pytest.raises(Killed):
            train(config, tmp_path / folder, KilledAtStep(4))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        log = MoveLog(8)
        with pytest.raises(Killed):
            train(config, tmp_path / folder, log)
        assert not hasattr(log, "places")
        assert CheckpointStore(tmp_path / folder).saved()[-1].meta.precision == expected


def convert_to_format_2(folder: Path) -> None:
    """Rewrite checkpoints as format 2 had them: early stopping in state.pt, metrics as keys.

    After an evaluation meta.json had the new state of early stopping, and state.pt the old one.
    """
    for item in CheckpointStore(folder).saved():
        assert item.meta.early_stopping is not None
        patience = {
            "best": item.meta.early_stopping.best,
            "waited": item.meta.early_stopping.evaluations_since_best,
        }
        state, meta = load_state(folder / item.name), item.meta.model_dump(mode="json")
        evaluated = item.meta.metrics is not None
        old = {
            **{key: meta[key] for key in ("step", "epoch", "world_size", "classes", "spec")},
            "config": meta["config"],
            "score": item.meta.score,
            "data": item.meta.data.train,
            "data_val": item.meta.data.val,
            **(item.meta.metrics or {}),
            **({"patience": patience} if evaluated else {}),
        }
        state["patience"] = {"best": None, "waited": 0} if evaluated else patience
        write_format_2(folder / item.name, state, old)


@pytest.mark.parametrize(("killed_at", "resumed_at"), [(11, 10), (13, 12)])
def test_training_with_checkpoints_of_format_2_resumes_bit_identically(
    small: Config, tmp_path: Path, killed_at: int, resumed_at: int
) -> None:
    # A rise by 1.0 is impossible: early stopping after the third evaluation, at step 15.
    change = {"train.patience": 2, "train.min_improvement": 1.0, "train.checkpoint_steps": 3}
    config = small.replace({**change, "train.epochs": 50, "data.test": None})
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", KilledAtStep(killed_at))
    convert_to_format_2(tmp_path / "killed")
    saved = CheckpointStore(tmp_path / "killed").saved()
    assert saved[-1].step == resumed_at
    assert train(config, tmp_path / "killed") == whole
    assert_equal(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))
    assert last_state(tmp_path / "killed")["step"] == 15


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (("--seed", "9"), "is not the data that this run was started with"),
        (("--classes", "star,circle,cross,square,triangle"), "star, circle.*circle, cross"),
    ],
)
def test_other_training_data_is_rejected(
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


def test_other_validation_data_is_rejected(small: Config, tmp_path: Path) -> None:
    def prepared(seed: str) -> Config:
        base = ("--source", "shapes", "--size", "64", "--count", "6", "--seed", seed)
        prepare.main([*base, "--out", str(tmp_path / "val"), "--overwrite"])
        return small.replace({"data.val": str(tmp_path / "val"), "data.test": None})

    with pytest.raises(Killed):
        train(prepared("2"), tmp_path / "run", KilledAtStep(7))
    with pytest.raises(UserError, match="/val is not the data that this run was started with"):
        train(prepared("9"), tmp_path / "run")
    train(prepared("2"), tmp_path / "run")


def test_counts_of_bad_samples_survive_a_restart(small: Config, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(str(small.data.train), tmp_path / "damaged"))
    path = folder / "shard-000000.tar"
    at, size = np.fromfile(path.with_suffix(".index"), "<i8").reshape(-1, 4)[2, :2]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(size))
    change = {"data.train": str(folder), "data.val": None, "data.test": None}
    config = small.replace({**change, "train.checkpoint_steps": 3})
    with pytest.raises(Killed):
        train(config, tmp_path / "run", KilledAtStep(8))
    train(config, tmp_path / "run")
    bad = CheckpointStore(tmp_path / "run").saved()[-1].meta.bad_samples
    assert bad is not None
    assert (bad.samples_read, bad.occurrences) == (40, 2)  # two epochs of 20
    assert list(bad.problems.values()) == [2]


class ReplacedAtStep(RunLog):
    """Replaces a shard set after a step."""

    def __init__(self, last: int, prepared: Callable[[str], Config]) -> None:
        super().__init__(None)
        self.last, self.prepared = last, prepared

    def step(self, step: int, *args: Any) -> None:
        if step == self.last:
            self.prepared("9")


@pytest.mark.parametrize("use", ["val", "test"])
def test_evaluation_data_replaced_during_a_training_is_reported(
    small: Config, tmp_path: Path, use: str
) -> None:
    def prepared(seed: str) -> Config:
        base = ("--source", "shapes", "--size", "64", "--count", "6", "--seed", seed)
        prepare.main([*base, "--out", str(tmp_path / use), "--overwrite"])
        return small.replace({f"data.{use}": str(tmp_path / use)})

    whole = train(prepared("2"), tmp_path / "whole")
    with pytest.raises(UserError, match=f"/{use} was replaced during the training"):
        train(prepared("2"), tmp_path / "run", ReplacedAtStep(7, prepared))
    (*_, last) = CheckpointStore(tmp_path / "run").saved()
    assert last.step == 10
    assert train(prepared("2"), tmp_path / "run") == whole


@pytest.mark.parametrize("step", [5, 10])
def test_training_killed_during_an_evaluation_loses_no_step(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = small.replace({"train.patience": 5})
    whole = train(config, tmp_path / "whole")
    validate = worker.validate

    def killed(
        split: str, uri: str, content: str, trainer: Trainer, log: RunLog
    ) -> worker.Validation:
        if trainer.step_count == step:
            raise Killed
        return validate(split, uri, content, trainer, log)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "validate", killed)
        with pytest.raises(Killed):
            train(config, tmp_path / "killed")
    (*_, last) = CheckpointStore(tmp_path / "killed").saved()
    assert last.step == step
    assert last.meta.metrics is None
    assert train(config, tmp_path / "killed") == whole
    saved = [CheckpointStore(tmp_path / name).saved() for name in ("whole", "killed")]
    for one, other in zip(*saved, strict=True):
        varying = {"saved"}
        assert one.meta.model_dump(exclude=varying) == other.meta.model_dump(exclude=varying)


def test_best_checkpoint_is_selected(small: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = train(small, folder)
    scores = {item.step: item.meta.score for item in CheckpointStore(folder).saved()}
    assert outcome.metrics["val/ap"] == max(scores.values())
    assert scores[outcome.best_step] == max(scores.values())
