"""Stop a training, or save it because a node is about to leave, without losing a step."""

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
from pipeline.training.error_hints import UnrecoverableFailure

POLL_SECONDS = 2.0  # between two polls, each of which costs a few milliseconds
RESUME_HINT = "run the same command with the same --run to resume"


@dataclass(frozen=True)
class Request:
    """A request to save now and then to stop, or to continue."""

    reason: str
    stop: bool

    def raise_if_stop(self, step: int, missing: str | None) -> None:
        """End the training if the request is to stop, by raising TrainingStopped.

        ``missing`` is the reason why the step has no checkpoint, if it has none; that is a failure.
        """
        if self.stop and missing:
            raise UnrecoverableFailure(f"{self.reason} after step {step}, but {missing}")
        if self.stop:
            raise TrainingStopped(f"{self.reason} after step {step}; {RESUME_HINT}")


class RequestPoller:
    """Polls for requests every few seconds, on all ranks at the same step."""

    def __init__(self, poll_request: Callable[[], Request | None], world: World) -> None:
        self._poll_request, self._timer = poll_request, SharedTimer(POLL_SECONDS, world)

    def poll(self, step: int) -> Request | None:
        """Return a request if there is one; every rank calls it after every step."""
        if not self._timer.due(step):
            return None
        self._timer.restart(step)
        return self._poll_request()


class StopSignal:
    """Records SIGTERM. A second one ends the process at once, as Ctrl-C does."""

    def __init__(self) -> None:
        self.received = threading.Event()

    def install(self) -> None:
        """Handle SIGTERM from now on; repeat it after `ray.init`, which replaces the handler."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        if self.received.is_set():
            raise KeyboardInterrupt("a second SIGTERM")
        self.received.set()


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Handle SIGTERM inside the block; has no effect outside the main thread."""
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
