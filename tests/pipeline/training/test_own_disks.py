"""Ranks on machines that do not share a folder, without Ray: only rank 0 needs the storage."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.storage.folder import Storage
from pipeline.training.fit import fit
from pipeline.training.run_record import RunRecord
from pipeline.training.session import check_same_run
from tests.ranks import on_each_rank


def on_each_disk(tmp_path: Path, work: Callable[[World], Any]) -> list[Any]:
    """Run ``work`` on three ranks; paths of rank 1 and 2 are below a folder of ``tmp_path``."""
    open_storage = Storage.__init__

    def on_own_disk(world: World) -> Any:
        disk = str(tmp_path / f"disk-{world.rank}")

        def open_on_disk(storage: Storage, uri: str) -> None:
            open_storage(storage, uri if uri.startswith(disk) else f"{disk}{uri}")

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCAL_RANK", "0" if world.is_main else "1")
            if not world.is_main:
                patch.setattr(Storage, "__init__", open_on_disk)
            return work(world)

    return on_each_rank(on_own_disk)


def test_training_needs_the_storage_on_rank_0_only(small: Config, tmp_path: Path) -> None:
    config = small.replace({"train.epochs": 1, "evaluate.pictures": 0})

    def train(world: World) -> Any:
        result = fit(config, run="one")
        return result.checkpoint, result.metrics, result.weights_sha256, os.listdir(tmp_path)

    results = on_each_disk(tmp_path, train)
    assert results[0] == results[1] == results[2]
    checkpoint, metrics, _, folders = results[0]
    assert metrics["test/ap"] >= 0.0
    assert [item.name for item in CheckpointStore(tmp_path / "runs" / "one").saved()] == [
        Path(checkpoint).name
    ]
    assert not [folder for folder in folders if folder.startswith("disk-")]


def test_rank_0_on_another_machine_than_the_run_is_rejected(tmp_path: Path) -> None:
    other = RunRecord(f"{tmp_path}/disk-2{tmp_path}/runs", "one")
    other.check_storage()
    other.write("abc", "running", Config())

    def check(world: World) -> str:
        with pytest.raises(UserError) as caught:
            check_same_run(RunRecord(str(tmp_path / "runs"), "one"), world)
        check_same_run(RunRecord(str(tmp_path / "runs"), "two"), world)
        return str(caught.value)

    (message,) = set(on_each_disk(tmp_path, check))
    host = platform.node()
    assert message.startswith(f"run 'one' is in '{tmp_path}/runs' on {host}, but not on {host}, ")

    own = RunRecord(str(tmp_path / "runs"), "one")
    own.check_storage()
    own.write("def", "stopped", Config())
    on_each_disk(tmp_path, lambda world: check_same_run(own, world))


def test_data_that_one_rank_does_not_see_ends_all_ranks(small: Config, tmp_path: Path) -> None:
    def train(world: World) -> str:
        missing = {"data.val": str(tmp_path / "absent")} if world.rank == 2 else {}
        with pytest.raises(UserError) as caught:
            fit(small.replace(missing), run="one")
        return str(caught.value)

    (message,) = set(on_each_rank(train))
    assert message.startswith(f"rank 2 on {platform.node()}: ") and "absent" in message
    assert not (tmp_path / "runs").exists()
