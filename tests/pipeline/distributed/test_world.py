"""Collectives of one rank and of three real ones, over gloo."""

import platform
from typing import Any

import pytest
import torch

from pipeline.distributed.world import World, mean_over_ranks, world_from_environment
from pipeline.errors import OutageError, TrainingFailed, UserError
from tests.ranks import RANKS, on_each_rank


@pytest.fixture
def _single(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_single")
def test_one_process_is_its_own_world() -> None:
    world, started = world_from_environment(gpu=False)
    assert not started and world.is_main and world.size == 1
    value = torch.tensor([1.0, 2.0])
    assert world.sum(value) is value and world.begin_sum(value)() is value
    assert world.gather("a") == ["a"] and world.broadcast("a") == "a"
    assert world.on_main(lambda: 3) == 3 and world.on_each(lambda: 4) == 4
    assert mean_over_ranks({"x": torch.tensor(2.0)}, world) == {"x": 2.0}


def collectives(world: World) -> dict[str, Any]:
    mine = float(world.rank)
    finish = world.begin_sum(torch.tensor([mine]))
    shared = [torch.full((2,), mine), torch.full((1,), mine + 10)]
    world.broadcast_tensors(shared)
    return {
        "begun": finish().tolist(),
        "sum": world.sum(torch.tensor([mine, 1.0])).tolist(),
        "gather": world.gather(f"rank {world.rank}"),
        "broadcast": world.broadcast({"rank": world.rank}),
        "tensors": [tensor.tolist() for tensor in shared],
        "mean": mean_over_ranks({"a": torch.tensor(mine), "b": torch.tensor(3.0)}, world),
        "on_main": world.on_main(lambda: f"called on {world.rank}"),
    }


def test_collectives_of_several_ranks() -> None:
    results = on_each_rank(collectives)
    everywhere = {
        "begun": [3.0],
        "sum": [3.0, 3.0],
        "broadcast": {"rank": 0},
        "tensors": [[0.0, 0.0], [10.0]],
        "mean": {"a": 1.0, "b": 3.0},
        "on_main": "called on 0",
    }
    gathered = ["rank 0", "rank 1", "rank 2"]
    assert results[0] == {**everywhere, "gather": gathered}
    assert results[1] == results[2] == {**everywhere, "gather": None}


def failures(world: World) -> list[tuple[str, str]]:
    found = []
    for error in (UserError("wrong option"), OutageError("no server"), ValueError("no such key")):

        def call(error: Exception = error) -> None:
            raise error

        try:
            world.on_main(call)
        except Exception as caught:
            found.append((type(caught).__name__, str(caught)))
    return found


def test_a_failure_on_the_main_rank_is_raised_on_all() -> None:
    main, *others = on_each_rank(failures)
    named = [("UserError", "wrong option"), ("OutageError", "no server")]
    assert main == [*named, ("ValueError", "no such key")]
    expected = [*named, (TrainingFailed.__name__, "no such key")]
    assert others == [expected] * (RANKS - 1)


def failures_on_each(world: World) -> list[tuple[str, str]]:
    found = []
    for kind, ranks in ((UserError, {1}), (UserError, {0, 1, 2}), (OSError, {2})):

        def call(kind: type[Exception] = kind, ranks: set[int] = ranks) -> int:
            if world.rank in ranks:
                raise kind("no such set")
            return world.rank

        try:
            world.on_each(call)
        except Exception as caught:
            found.append((type(caught).__name__, str(caught)))
    assert world.on_each(lambda: world.rank) == world.rank
    return found


def test_a_failure_on_any_rank_is_raised_on_all() -> None:
    *others, last = on_each_rank(failures_on_each)
    host = platform.node()
    mistakes = [("UserError", f"rank 1 on {host}: no such set"), ("UserError", "no such set")]
    failure = (TrainingFailed.__name__, f"rank 2 on {host}: no such set")
    assert others == [[*mistakes, failure]] * (RANKS - 1)
    assert last == [*mistakes, ("OSError", "no such set")]
