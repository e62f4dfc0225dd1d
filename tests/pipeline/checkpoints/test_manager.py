"""Saving while training: off the step's path, when it is due, and when the storage fails."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoints import manager as manager_module
from pipeline.checkpoints.manager import CheckpointManager
from pipeline.checkpoints.rng_state import restore_rng, rng_state
from pipeline.checkpoints.store import SCORE, CheckpointStore
from pipeline.config import Config
from pipeline.distributed.shared_timer import SharedTimer
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed, UserError
from pipeline.training.trainer.trainer import Trainer


@contextlib.contextmanager
def managed(
    store: CheckpointStore, size: int = 64, **train: Any
) -> Iterator[tuple[CheckpointManager, Trainer]]:
    config = Config.from_dict({"model": {"image_size": size}, "train": train})
    trainer = Trainer(config, World(), num_classes=3, total_steps=10)
    with contextlib.closing(CheckpointManager(config, store, trainer)) as manager:
        yield manager, trainer


def advance(trainer: Trainer) -> None:
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.step_count += 1


def anything(meta: Mapping[str, Any]) -> None:
    pass


class Slow(CheckpointStore):
    """A storage that takes its time, until it is let go."""

    def __init__(self, uri: Path) -> None:
        super().__init__(uri)
        self.go = threading.Event()

    def save(self, *args: Any) -> None:
        assert self.go.wait(30)
        super().save(*args)


def test_the_step_is_kept_waiting_for_a_copy_alone(tmp_path: Path) -> None:
    """The slim model as the recipes train it; its state of 24 MB takes longer to write."""
    store = Slow(tmp_path)
    with managed(store, size=320) as (manager, trainer):
        assert not manager.restore(anything)
        for _ in range(5):
            advance(trainer)
            manager.save({})
            assert store.saved() == [] or trainer.step_count > 1
            store.go.set()
            manager.wait()
    blocked = sorted(1e3 * seconds for seconds in manager.blocked)
    print(f"\na step was blocked for {blocked[2]:.1f} ms (median), at most {blocked[-1]:.1f} ms")
    assert blocked[2] <= 50.0


def test_what_is_written_is_the_moment_of_the_save(tmp_path: Path) -> None:
    store = Slow(tmp_path)
    with managed(store) as (manager, trainer):
        manager.restore(anything)
        advance(trainer)
        expected = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
        manager.save({})
        advance(trainer)
        store.go.set()
    state = store.load("step-00000001")
    assert state["step"] == 1
    assert all(torch.equal(state["model"][name], value) for name, value in expected.items())


def test_a_new_training_goes_on_from_the_newest_sound_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    with managed(store) as (manager, trainer):
        manager.restore(anything)
        for _ in range(3):
            advance(trainer)
            manager.save({})
    newest = tmp_path / "step-00000003" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with managed(store, seed=9) as (manager, trainer), caplog.at_level(logging.WARNING):
        assert manager.restore(anything)
        assert trainer.step_count == 2
    assert "step-00000003 is damaged" in caplog.text
    assert "falling back to the one before" in caplog.text


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = data.index(b'"weights_sha256": "') + 25
    return data[:middle] + bytes([data[middle] ^ 0x04]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped])
def test_a_damaged_readable_half_is_no_silent_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    store = CheckpointStore(tmp_path)
    with managed(store) as (manager, trainer):
        manager.restore(anything)
        for _ in range(2):
            advance(trainer)
            manager.save({})

    def damaged(step: int) -> str:
        meta = tmp_path / f"step-{step:08d}" / "meta.json"
        meta.write_bytes(damage(meta.read_bytes()))
        caplog.clear()
        with managed(store) as (manager, trainer):
            manager.restore(anything)
            assert trainer.step_count == step - 1
        return caplog.text

    said = damaged(2)
    assert "step-00000002 is damaged: " in said and "falling back to the one before" in said
    assert "anew" not in said
    said = damaged(1)
    assert "step-00000001 is damaged: " in said and "step-00000002" not in said
    assert "is sound; training begins anew" in said


def test_the_check_sees_the_meta_and_may_refuse(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with managed(store) as (manager, trainer):
        advance(trainer)
        manager.save({"data": "abc"})

    def refuse(meta: Mapping[str, Any]) -> None:
        raise UserError(f"not {meta['data']}")

    with managed(store) as (manager, _), pytest.raises(UserError, match="not abc"):
        manager.restore(refuse)


def test_generators_of_every_kind_go_on(tmp_path: Path) -> None:
    def draws() -> tuple[Any, ...]:
        return random.random(), random.gauss(), np.random.rand(), torch.rand(()).item()

    store = CheckpointStore(tmp_path)
    with managed(store) as (manager, trainer):
        draws()
        advance(trainer)
        manager.save({})
        expected = [draws(), draws()]
    with managed(store, seed=4) as (manager, _):
        assert manager.restore(anything)
        assert [draws(), draws()] == expected


def test_another_number_of_ranks_begins_streams_of_their_own() -> None:
    saved = [rng_state(torch.device("cpu"))] * 2
    seen = set()
    for size, rank, step in ((3, 0, 5), (3, 1, 5), (3, 2, 5), (3, 0, 6), (1, 0, 5)):
        restore_rng(saved, World(rank, size), seed=1, step=step)
        seen.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(seen) == 4  # (1, 0) is (3, 0): rank, seed and step say it all
    restore_rng(saved, World(1, 2), seed=1, step=5)
    assert torch.equal(torch.get_rng_state(), saved[1]["torch"])


class FullAfter(CheckpointStore):
    """A disk that fills up after some checkpoints, by the kernel's own error."""

    def __init__(self, folder: Path, good: int) -> None:
        super().__init__(folder)
        self.folder, self.good = folder, good

    def save(self, step: int, *args: Any) -> None:
        self.good -= 1
        path = self.folder / f"step-{step:08d}" / "state.pt"
        if self.good < 0 and not path.is_symlink():
            path.parent.mkdir(exist_ok=True)
            path.symlink_to("/dev/full")
        super().save(step, *args)


def test_a_full_disk_costs_a_line_and_the_last_checkpoint_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "RETRY_SECONDS", (0.01, 0.01))
    with managed(FullAfter(tmp_path, good=1)) as (manager, trainer):
        manager.restore(anything)
        advance(trainer)
        manager.save({SCORE: 0.1})
        advance(trainer)
        manager.save({SCORE: 0.2})
        manager.wait()
        (line,) = [record.getMessage() for record in caplog.records]
        assert "step-00000002 cannot be written" in line
        assert "No space left on device" in line
        assert "from step-00000001" in line
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        with pytest.raises(TrainingFailed, match="last checkpoint could not be written"):
            manager.finish()


def test_a_hiccup_of_the_storage_is_waited_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "RETRY_SECONDS", (0.5, 0.5))
    blocker = tmp_path / "step-00000001"
    blocker.write_text("a file where the folder belongs")
    with managed(CheckpointStore(tmp_path)) as (manager, trainer):
        manager.restore(anything)
        advance(trainer)
        manager.save({})
        time.sleep(0.1)
        blocker.unlink()
        last, chosen = manager.finish()
    assert last == chosen
    assert last.step == 1
    assert not caplog.records


def test_an_evaluation_outlasts_a_hiccup_of_the_storage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "RETRY_SECONDS", (0.01, 0.01))
    amend, tried = CheckpointStore.amend, []

    def hiccup(store: CheckpointStore, step: int, meta: Mapping[str, Any]) -> None:
        tried.append(step)
        if len(tried) < 3:
            raise OSError(5, "Input/output error")
        amend(store, step, meta)

    monkeypatch.setattr(CheckpointStore, "amend", hiccup)
    with managed(CheckpointStore(tmp_path)) as (manager, trainer):
        manager.restore(anything)
        advance(trainer)
        manager.save({SCORE: -1.0})
        manager.amend({SCORE: 0.5})
        last, _ = manager.finish()
    assert (last.meta[SCORE], tried, caplog.records) == (0.5, [1, 1, 1], [])


def test_what_breaks_a_save_is_told_though_an_evaluation_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no such format")

    with managed(CheckpointStore(tmp_path)) as (manager, trainer):
        manager.restore(anything)
        advance(trainer)
        monkeypatch.setattr(manager.store, "save", broken)
        manager.save({})
        manager.amend({SCORE: 0.5})
        with pytest.raises(ValueError, match="no such format"):
            manager.wait()


def test_the_timed_kind_waits_for_the_writer_and_is_never_sooner_than_5_seconds(
    tmp_path: Path,
) -> None:
    with managed(CheckpointStore(tmp_path), checkpoint_minutes=1e-4) as (manager, _):
        assert manager._timer.seconds == 5.0
    with managed(CheckpointStore(tmp_path), checkpoint_minutes=0) as (manager, _):
        assert not any(manager.due(step) for step in range(100))


class Clock:
    """Time that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("pipeline.distributed.shared_timer.time.monotonic", lambda: self.now)


class Counting(World):
    """A world that counts what the ranks ask of each other."""

    asked = 0

    def share(self, value: Any) -> Any:
        Counting.asked += 1
        return super().share(value)


@pytest.mark.parametrize("step_seconds", [0.01, 0.3, 20.0])
def test_time_is_noticed_soon_with_few_questions(
    monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    clock, Counting.asked = Clock(monkeypatch), 0
    timer = SharedTimer(600.0, Counting())
    due = []
    for step in range(1, int(2000 / step_seconds)):
        clock.now += step_seconds
        if timer.due(step):
            due.append(clock.now)
            timer.restart(step)
    assert len(due) == 3
    assert due == pytest.approx([600, 1200, 1800], abs=2 + 3 * step_seconds)
    assert Counting.asked < 60


def test_a_busy_writer_puts_the_time_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timer = SharedTimer(5.0, World())
    for step in range(1, 100):
        clock.now += 1.0
        if timer.due(step, busy=lambda: clock.now < 20):
            break
    assert 20 <= clock.now <= 22
