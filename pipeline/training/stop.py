"""Being asked to stop, or to save because a node is about to go, without losing a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.distributed.shared_timer import SharedTimer
from pipeline.distributed.world import World
from pipeline.errors import TrainingStopped
from pipeline.training.error_hints import FailedForGood

LOOK_SECONDS = 2.0  # between looks, each of which costs a few milliseconds
GO_ON = "the same command with the same --run goes on"


@dataclass(frozen=True)
class Request:
    """Save now; and then end, or go on."""

    reason: str
    stop: bool

    def obey(self, step: int, missing: str | None) -> None:
        """End the training if that is asked for, by raising TrainingStopped.

        ``missing`` says why the step has no checkpoint, if so; then it is a failure.
        """
        if self.stop and missing:
            raise FailedForGood(f"{self.reason} after step {step}, but {missing}")
        if self.stop:
            raise TrainingStopped(f"{self.reason} after step {step}; {GO_ON}")


class Requests:
    """Passes requests on to the training loop, all ranks at the same step."""

    def __init__(self, look: Callable[[], Request | None], world: World) -> None:
        self._look, self._timer = look, SharedTimer(LOOK_SECONDS, world)

    def at(self, step: int) -> Request | None:
        """What is asked for after this step; every rank calls it after every step."""
        if not self._timer.due(step):
            return None
        self._timer.restart(step)
        return self._look()


class StopSignal:
    """SIGTERM as a wish. A second one ends the process at once, as Ctrl-C does."""

    def __init__(self) -> None:
        self.wanted = threading.Event()

    def install(self) -> None:
        """Receive SIGTERM from now on; again after `ray.init`, which takes it for itself."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        if self.wanted.is_set():
            raise KeyboardInterrupt("a second SIGTERM")
        self.wanted.set()


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Receive SIGTERM inside the block; nothing where this is not the main thread."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGTERM)
    stop.install()
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
