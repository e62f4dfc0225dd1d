"""Assignment health depends only on what a checkpoint holds."""

import os
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.distributed.world import World
from pipeline.training.trainer.assignment_health import assignment_health
from tests.pipeline.training.trainer.test_numerics import make_trainer
from tests.pipeline.training.trainer.test_trainer import batch, rows


def _rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    world, share = World(rank, 2), rows(batch(), 2 * rank, 2 * rank + 2)
    trainer = make_trainer(world, freeze_norm=False)
    for _ in range(3):
        trainer.step(share)
    resumed = make_trainer(world, freeze_norm=False)
    resumed.load(world.broadcast(trainer.state() if world.is_main else None))
    expected, found = (assignment_health(one, share) for one in (trainer, resumed))
    assert "assign/score_iou_correlation" in expected
    assert found == expected
    dist.destroy_process_group()


def test_health_is_the_same_after_a_resume(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
