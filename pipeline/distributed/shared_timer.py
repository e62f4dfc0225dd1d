"""A time that all ranks see pass at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.distributed.world import World


class SharedTimer:
    """Decides on rank 0 and tells the others; every rank calls every method at the same steps.

    Asking rank 0 costs a collective. So its answer says how many steps pass before it is asked
    again: half of the time that is left, at the present speed. That makes a handful of questions
    per period instead of one per step, and a delay of few steps as long as the speed is steady.
    """

    def __init__(self, seconds: float, world: World) -> None:
        self.seconds, self.world = seconds, world
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin anew at this step."""
        self._began = self._asked = time.monotonic()
        self._asked_at, self._ask_at = step, step + 1

    def due(self, step: int, busy: Callable[[], bool] = lambda: False) -> bool:
        """Whether the time has passed; rank 0 puts it off while it is ``busy``."""
        if step < self._ask_at:
            return False
        wait: int = self.world.share(self._wait(step, busy()) if self.world.is_main else None)
        self._ask_at = step + wait
        return wait == 0

    def _wait(self, step: int, busy: bool) -> int:
        now = time.monotonic()
        speed = max(1e-6, (now - self._asked) / max(1, step - self._asked_at))  # seconds per step
        self._asked, self._asked_at = now, step
        left = self._began + self.seconds - now
        if left <= 0 and not busy:
            return 0
        return max(1, round(max(0.5, left / 2) / speed))
