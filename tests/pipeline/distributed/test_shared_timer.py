"""The shared timer: accurate, at the cost of few collectives."""

from typing import Any

import pytest

from pipeline.distributed.shared_timer import SharedTimer
from pipeline.distributed.world import World


class Clock:
    """Time that the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("pipeline.distributed.shared_timer.time.monotonic", lambda: self.now)


class CountingWorld(World):
    """A world that counts its collectives."""

    collectives = 0

    def broadcast(self, value: Any) -> Any:
        CountingWorld.collectives += 1
        return super().broadcast(value)


@pytest.mark.parametrize("step_seconds", [0.01, 0.3, 20.0])
def test_shared_timer_is_accurate_with_few_collectives(
    monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    clock, CountingWorld.collectives = Clock(monkeypatch), 0
    timer = SharedTimer(600.0, CountingWorld())
    due = []
    for step in range(1, int(2000 / step_seconds)):
        clock.now += step_seconds
        if timer.due(step):
            due.append(clock.now)
            timer.restart(step)
    assert len(due) == 3
    assert due == pytest.approx([600, 1200, 1800], abs=2 + 3 * step_seconds)
    assert CountingWorld.collectives < 60


def test_shared_timer_is_postponed_while_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timer = SharedTimer(5.0, World())
    for step in range(1, 100):
        clock.now += 1.0
        if timer.due(step, busy=lambda: clock.now < 20):
            break
    assert 20 <= clock.now <= 22
