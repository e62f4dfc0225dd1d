"""A timer that expires at the same step on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.distributed.world import World


class SharedTimer:
    """A timer of rank 0 that the other ranks follow; all ranks call its methods at the same steps.

    A check costs a collective. Therefore each check also fixes the step of the next one, which is
    expected after half of the remaining time at the current speed. That takes a handful of checks
    per period instead of one per step, and expires a few steps late as long as the speed is steady.
    """

    def __init__(self, seconds: float, world: World) -> None:
        self.seconds, self.world = seconds, world
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start a period at this step."""
        self._began = self._checked = time.monotonic()
        self._checked_step, self._next_check = step, step + 1

    def due(self, step: int, busy: Callable[[], bool] = lambda: False) -> bool:
        """Return whether the period is over; rank 0 postpones it while it is ``busy``."""
        if step < self._next_check:
            return False
        own = self._steps_to_wait(step, busy()) if self.world.is_main else None
        wait: int = self.world.broadcast(own)
        self._next_check = step + wait
        return wait == 0

    def _steps_to_wait(self, step: int, busy: bool) -> int:
        now = time.monotonic()
        seconds_per_step = max(1e-6, (now - self._checked) / max(1, step - self._checked_step))
        self._checked, self._checked_step = now, step
        left = self._began + self.seconds - now
        if left <= 0 and not busy:
            return 0
        return max(1, round(max(0.5, left / 2) / seconds_per_step))
