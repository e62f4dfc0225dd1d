"""Checkpoints that only rank 0 can read: the same state on all ranks, read once."""

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.checkpoints import broadcast
from pipeline.checkpoints.broadcast import broadcast_state, read_on_main
from pipeline.checkpoints.format import STATE, tensors_sha256
from pipeline.checkpoints.manager import CheckpointManager
from pipeline.checkpoints.meta import CheckpointMeta
from pipeline.checkpoints.snapshot import map_tensors
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed
from pipeline.storage.folder import Storage
from pipeline.training.trainer.trainer import Trainer
from tests.pipeline.checkpoints.examples import example_meta
from tests.ranks import on_each_rank


def example_state() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(7)
    images = torch.rand(2, 3, 5, 4, generator=draw)
    return {
        "model": {
            "nchw": images.clone(),
            "nhwc": images.to(memory_format=torch.channels_last),
            "kernel": torch.ones(6, 3, 1, 1).to(memory_format=torch.channels_last),
            "wider than a chunk": torch.rand(1000, dtype=torch.float64, generator=draw),
            "count": torch.tensor(2**53 + 1),
            "half": images.bfloat16(),
            "mask": images > 0.5,
            "none": torch.empty(0, 4),
            "bits": torch.tensor([0x7FC00123, 1], dtype=torch.int32).view(torch.float32),  # a NaN
            "every other": torch.arange(10)[::2],
        },
        "rng": [{"torch": torch.arange(256, dtype=torch.uint8), "python": (3, (1, 2), None)}],
        "step": 5,
    }


def forms(state: Any) -> Any:
    """Return a description of all values that is equal only for the same bytes and layouts."""

    def form(value: Tensor) -> Any:
        # A copy, like a checkpoint, has no gaps.
        strides = torch.empty_like(value).stride()
        content = tensors_sha256({"value": value})
        return str((value.shape, strides, value.dtype, value.device, content))

    return map_tensors(state, form)


@pytest.mark.parametrize("chunk", [1 << 26, 100])
def test_state_is_the_same_on_every_rank(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(broadcast, "CHUNK_BYTES", chunk)
    expected = forms(example_state())

    def received(world: World) -> Any:
        state = broadcast_state(example_state() if world.is_main else None, world)
        assert state is not None
        strides = {name: value.stride() for name, value in state["model"].items()}
        assert strides["nhwc"] == example_state()["model"]["nhwc"].stride()
        return forms(state)

    assert on_each_rank(received) == [expected] * 3
    assert on_each_rank(lambda world: broadcast_state(None, world)) == [None] * 3


def accept(meta: CheckpointMeta) -> None:
    pass


class CountingStorage(Storage):
    """A storage that counts how often ``state.pt`` is read."""

    reads = 0

    def child(self, name: str) -> Storage:
        return CountingStorage(super().child(name).uri)

    def read(self, name: str) -> bytes:
        CountingStorage.reads += name.endswith(STATE)
        return super().read(name)


@contextlib.contextmanager
def managed(world: World, folder: Path, seed: int) -> Any:
    """Yield a manager whose storage is a folder that only this rank uses."""
    config = Config.from_dict({"model": {"image_size": 64}, "train": {"seed": seed}})
    trainer = Trainer(config, world, num_classes=3, total_steps=10)
    store = CheckpointStore(folder / f"rank-{world.rank}")
    store.storage = CountingStorage(store.storage.uri)
    with contextlib.closing(CheckpointManager(config, store, trainer)) as manager:
        yield manager, trainer


def advance(trainer: Trainer) -> None:
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.average.update()
    trainer.step_count += 1


def draws() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def trained_state(trainer: Trainer) -> str:
    state = trainer.state()
    momenta = state["optimizer"]["state"]
    tensors = {str(key): value["momentum_buffer"] for key, value in momenta.items()}
    assert tensors
    return " ".join(map(tensors_sha256, (state["model"], state["ema"], tensors)))


def test_only_rank_0_reads_the_storage_and_each_checkpoint_once(tmp_path: Path) -> None:
    def work(world: World) -> dict[str, Any]:
        with managed(world, tmp_path, seed=1) as (manager, trainer):
            manager.restore(accept)
            torch.manual_seed(world.rank)
            advance(trainer)
            manager.save(example_meta(1))
            expected = trained_state(trainer), draws()
        with managed(world, tmp_path, seed=2) as (manager, trainer):
            CountingStorage.reads = 0
            meta = manager.restore(accept)
            assert meta is not None and meta.step == trainer.step_count == 1
            assert (trained_state(trainer), draws()) == expected
            advance(trainer)
            trainer.step_count = 1
            last, selected = manager.finish()
            assert last == selected and last.step == 1
            assert trained_state(trainer) == expected[0]
        return {"state": expected[0], "draws": expected[1], "reads": CountingStorage.reads}

    results = on_each_rank(work)
    assert [result["reads"] for result in results] == [2, 0, 0]
    assert len({result["state"] for result in results}) == 1
    assert len({result["draws"] for result in results}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0"]


def test_all_ranks_fall_back_from_a_damaged_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with managed(World(), tmp_path, seed=1) as (manager, trainer):
        for step in (1, 2, 3):
            advance(trainer)
            manager.save(example_meta(step))
            manager.wait()
            if step == 2:
                expected = trained_state(trainer)
    newest = tmp_path / "rank-0" / "step-00000003" / STATE
    newest.write_bytes(newest.read_bytes()[:-1])

    def work(world: World) -> tuple[str, int, str]:
        CountingStorage.reads = 0
        with managed(world, tmp_path, seed=2) as (manager, trainer):
            manager.restore(accept)
            return trained_state(trainer), CountingStorage.reads, caplog.text

    results = on_each_rank(work)
    assert {state for state, _, _ in results} == {expected}
    assert [reads for _, reads, _ in results] == [2, 0, 0]
    assert "step-00000003 is damaged" in results[0][2] and not results[1][2] and not results[2][2]


def test_unreadable_storage_of_rank_0_is_raised_on_all_ranks(tmp_path: Path) -> None:
    def unreadable() -> tuple[None, None]:
        raise OSError("Input/output error")

    def work(world: World) -> str:
        with pytest.raises((OSError, TrainingFailed)) as caught:
            read_on_main(unreadable, world)
        return str(caught.value)

    assert on_each_rank(work) == ["Input/output error"] * 3
