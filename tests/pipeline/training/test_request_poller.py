"""Polls for requests: a bounded share of the time, and the same step on all ranks."""

import time
from typing import Any

import pytest
import torch

from pipeline.distributed.world import World
from pipeline.training.stop import POLL_SECONDS, Request, RequestPoller
from tests.pipeline.distributed.test_world import RANKS, on_each_rank

SAVE = Request("a node leaves", stop=False)


class Requests:
    """A request that rank 0 receives at a time; it counts the polls of the session."""

    def __init__(self, world: World, at: float = float("inf")) -> None:
        self.world, self.at, self.polls = world, at, 0

    def request_pending(self) -> bool:
        assert self.world.is_main
        return time.monotonic() >= self.at

    def poll_request(self) -> Request | None:
        self.polls += 1
        self.at = float("inf")
        found: Request | None = self.world.broadcast(SAVE if self.world.is_main else None)
        return found


class Clock:
    """Time that passes in steps and collectives only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


class SlowWorld(World):
    """A world whose collectives take a fixed time, and the next one longer."""

    seconds: float
    clock: Clock
    spent = next_delay = 0.0

    def minimum(self, value: torch.Tensor) -> torch.Tensor:
        seconds, SlowWorld.next_delay = self.seconds + self.next_delay, 0.0
        SlowWorld.spent += seconds
        self.clock.now += seconds
        return super().minimum(value)


@pytest.fixture
def slow_world(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(seconds: float) -> SlowWorld:
        SlowWorld.seconds, SlowWorld.spent = seconds, 0.0
        SlowWorld.clock = Clock(monkeypatch)
        return SlowWorld()

    return make


@pytest.mark.parametrize("collective", [0.0001, 0.004, 0.2])
@pytest.mark.parametrize("step_seconds", [0.01, 0.3, 4.0])
def test_polls_take_at_most_one_percent_of_the_time(
    slow_world: Any, collective: float, step_seconds: float
) -> None:
    world = slow_world(collective)
    clock, requests = world.clock, Requests(world)
    poller, began = RequestPoller(requests, world, step=700), world.clock.now
    world_spent = SlowWorld.spent
    for step in range(701, 701 + int(2000 / step_seconds)):
        clock.now += step_seconds
        assert poller.poll(step) is None
    spent = SlowWorld.spent - world_spent
    assert 0.0 < spent <= 0.0101 * (clock.now - began)
    assert requests.polls == 0


@pytest.mark.parametrize("step_seconds", [0.01, 0.3])
def test_request_is_returned_within_seconds(slow_world: Any, step_seconds: float) -> None:
    world = slow_world(0.004)
    clock, requests = world.clock, Requests(world, at=world.clock.now + 100.0)
    poller, at = RequestPoller(requests, world, step=0), requests.at
    step = 0
    while (request := poller.poll(step)) is None:
        clock.now += step_seconds
        step += 1
    assert request == SAVE and requests.polls == 1
    assert 0.0 <= clock.now - at <= POLL_SECONDS + 2 * step_seconds


def test_one_slow_poll_does_not_delay_the_next_ones(slow_world: Any) -> None:
    world = slow_world(0.001)
    clock, requests = world.clock, Requests(world)
    poller = RequestPoller(requests, world, step=0)
    for step in range(1, 300):
        clock.now += 0.1
        poller.poll(step)
    SlowWorld.next_delay, requests.at = 3.0, clock.now + 10.0
    for step in range(300, 300 + int(15.0 / 0.1)):
        clock.now += 0.1
        poller.poll(step)
    assert SlowWorld.next_delay == 0.0
    assert requests.polls == 1


def steps_with_requests(world: World) -> list[int]:
    """Train ranks of different speed; rank 0 receives three requests."""
    requests = Requests(world)
    poller, found = RequestPoller(requests, world, step=0), []
    for step in range(1, 60):
        time.sleep(0.004 * (1 + world.rank))
        world.sum(torch.ones(1))  # gradients
        if world.is_main and step in (10, 25, 40):
            requests.at = time.monotonic()
        if poller.poll(step):
            found.append(step)
    return found


def test_all_ranks_get_a_request_at_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.stop.POLL_SECONDS", 0.02)
    monkeypatch.setattr("pipeline.training.stop.MAX_SHARE", 1.0)
    first, *others = on_each_rank(steps_with_requests)
    assert others == [first] * (RANKS - 1)
    assert len(first) == 3 and first[0] >= 10


def cost_beside_a_slow_rank(world: World) -> float:
    poller = RequestPoller(Requests(world), world, step=0)
    for step in range(1, 6):
        time.sleep(0.2 if world.rank == 1 else 0.0)
        poller._next_step = step
        poller.poll(step)
    return max(poller._costs)


def test_waiting_for_a_slow_rank_is_not_a_cost_of_polls() -> None:
    assert max(on_each_rank(cost_beside_a_slow_rank)) < 0.1
