"""Resuming with another number of ranks: the same batches, and gradients within 1e-5."""

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.checkpoints.manager import CheckpointManager
from pipeline.checkpoints.meta import CheckpointMeta
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.data import build_train_loader
from pipeline.distributed.world import World
from pipeline.training.trainer.trainer import Trainer
from tests.pipeline.checkpoints.examples import example_meta


def accept(meta: CheckpointMeta) -> None:
    pass


def step_after(config: Config, world: World, folder: str, saved: int) -> dict[str, Any]:
    """Return the samples and the effect of the step after ``saved``.

    A new training saves a checkpoint before that step; a resumed one starts from it.
    """
    trainer = Trainer(config, world, num_classes=5, total_steps=100)
    with contextlib.closing(CheckpointManager(config, CheckpointStore(folder), trainer)) as manager:
        manager.restore(accept)
        assert config.data.train is not None
        first = trainer.step_count
        loader = iter(build_train_loader(config.data.train, config, world.rank, world.size, first))
        for batch in itertools.islice(loader, saved - first):
            trainer.step(batch)
        if first < saved:
            manager.save(example_meta(saved))
        before = {name: p.detach().clone() for name, p in trainer.detector.named_parameters()}
        batch = next(loader)
        trainer.step(batch)
    return {
        "first": first,
        "seen": list(
            zip(batch.image_ids, batch.images.long().sum((1, 2, 3)).tolist(), strict=True)
        ),
        "before": before,
        "after": {name: p.detach() for name, p in trainer.detector.named_parameters()},
        "rate": trainer.learning_rate,
    }


def rank_of_two(rank: int, config: Config, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(step_after(config, World(rank, 2), f"{folder}/run", 3), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_rank_resumes_a_training_of_two(small: Config, tmp_path: Path) -> None:
    # Plain descent, so that the change of the weights is the gradient. Shares of 2 and 3 images.
    plain = {"train.momentum": 0.0, "train.weight_decay": 0.0, "train.clip_norm": 1e9}
    # Batch statistics depend on how a batch is split; group statistics do not.
    config = small.replace({**plain, "train.batch_size": 5, "model.norm": "group"})
    mp.spawn(rank_of_two, args=(config, str(tmp_path)), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = step_after(config, World(), str(tmp_path / "run"), 3)
    assert (one["first"], two[0]["first"]) == (3, 0)

    assert sorted(one["seen"]) == sorted(two[0]["seen"] + two[1]["seen"])
    assert sorted(len(rank["seen"]) for rank in two) == [2, 3]

    moved = 0
    for name, start in one["before"].items():
        assert torch.equal(start, two[0]["before"][name])
        alone, shared = ((run["after"][name] - start) / one["rate"] for run in (one, two[0]))
        scale = max(1.0, float(alone.abs().max()))
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5 * scale)
        moved += bool((alone != 0).any())
    assert moved > len(one["before"]) / 2
