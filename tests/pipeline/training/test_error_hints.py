"""Errors of torch become messages that say what to do."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from pipeline.config import Config
from pipeline.distributed.world import World, world_from_environment
from pipeline.errors import TrainingFailed, TrainingStopped, UserError
from pipeline.training.error_hints import UnrecoverableFailure, translate_errors
from tests.ports import free_port

CONFIG = Config.from_dict({"ray": {"collective_timeout": 2}, "train": {"micro_batch": 3}})


def test_out_of_memory_says_what_to_lower() -> None:
    expected = (
        r"rank 1 is out of CPU memory: lower train.micro_batch \(now 3 .*image_size \(now 320"
    )
    with pytest.raises(UserError, match=expected), translate_errors(CONFIG, World(1, 2)):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="size"), translate_errors(CONFIG, World()):
        torch.ones(3) + torch.ones(4)


def test_own_errors_are_not_translated() -> None:
    ended = "stopped by SIGTERM, but [Errno 104] Connection reset by peer"
    for kind in (UnrecoverableFailure, TrainingStopped):
        with pytest.raises(kind, match="Errno 104"), translate_errors(CONFIG, World()):
            raise kind(ended)


def _rank(rank: int, folder: str, port: int, ends: bool) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port))
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    world, _ = world_from_environment(gpu=False, timeout=CONFIG.ray.collective_timeout)
    world.sum(torch.ones(1))
    if rank == 1:
        time.sleep(0.0 if ends else 60.0)
        os._exit(0)
    try:
        with translate_errors(CONFIG, world):
            world.begin_sum(torch.ones(1))()
    except TrainingFailed as error:
        Path(folder, "reason").write_text(str(error))
    os._exit(0)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (False, "rank 0 waited 2 s for the other workers (ray.collective_timeout): one of them"),
        (True, "rank 0 lost another worker, which has ended; see its log"),
    ],
)
def test_wait_for_a_hanging_or_ended_worker_is_limited(
    tmp_path: Path, ends: bool, expected: str
) -> None:
    began = time.monotonic()
    port = free_port()
    ranks = [
        mp.get_context("fork").Process(target=_rank, args=(rank, str(tmp_path), port, ends))
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    ranks[0].join(50)
    ranks[1].kill()
    ranks[1].join()
    assert (tmp_path / "reason").read_text().startswith(expected)
    assert time.monotonic() - began < 50
