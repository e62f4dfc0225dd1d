"""Stop a training, or save it because a node is about to leave, without losing a step."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.distributed.world import World
from pipeline.errors import TrainingStopped
from pipeline.training.error_hints import UnrecoverableFailure

POLL_SECONDS = 1.0  # between two polls, if they are cheap enough
MAX_SHARE = 0.01  # of the time, for polls
COSTS = 5  # polls whose median duration is the cost of one
RESUME_HINT = "run the same command with the same --run to resume"


@dataclass(frozen=True)
class Request:
    """A request to save now and then to stop, to hold, or to continue."""

    reason: str
    stop: bool
    # Called by every rank once the checkpoint is written, with the reason if it is missing.
    hold: Callable[[str | None], None] | None = None

    @property
    def needs_checkpoint(self) -> bool:
        """Return whether the next step has to wait until the checkpoint is written."""
        return self.stop or self.hold is not None

    def raise_if_stop(self, step: int, missing: str | None) -> None:
        """End the training if the request is to stop, by raising TrainingStopped.

        ``missing`` is the reason why the step has no checkpoint, if it has none; that is a failure.
        """
        if self.stop and missing:
            raise UnrecoverableFailure(f"{self.reason} after step {step}, but {missing}")
        if self.stop:
            raise TrainingStopped(f"{self.reason} after step {step}; {RESUME_HINT}")


class RequestSource(Protocol):
    """What `RequestPoller` needs from a session."""

    def request_pending(self) -> bool:
        """Return whether `poll_request` would return a request; called on rank 0 only."""

    def poll_request(self) -> Request | None:
        """Return a pending request, the same on every rank. Every rank calls it."""


class RequestPoller:
    """Polls for requests every second or two, on all ranks at the same step.

    Rank 0 knows from memory whether a request is pending, and one small collective passes that on.
    The interval follows the cost of this collective, so that polling takes 1 % of the time at most.
    Every rank creates the poller at the same point of the training.
    """

    def __init__(self, source: RequestSource, world: World, step: int) -> None:
        self._source, self._world = source, world
        self._step, self._next_step = step, step + 1  # of the last poll and the next one
        self._costs: deque[float] = deque(maxlen=COSTS)
        self._exchange([0.0, 0.0, 0.0])  # opens the connections; the next one has a usual duration
        self._exchange([0.0, 0.0, 0.0])

    def poll(self, step: int) -> Request | None:
        """Return a request if there is one; every rank calls it after every step."""
        if step < self._next_step:
            return None
        pending, seconds_per_step = 0.0, float("inf")  # rank 0 decides
        if self._world.is_main:
            pending = -float(self._source.request_pending())
            seconds_per_step = (time.monotonic() - self._time) / (step - self._step)
        pending, seconds_per_step, cost = self._exchange([pending, seconds_per_step, self._cost])
        self._costs.append(cost)
        interval = max(POLL_SECONDS, statistics.median(self._costs) / MAX_SHARE)
        steps = math.ceil(interval / max(1e-6, seconds_per_step))
        self._step, self._next_step = step, step + max(1, steps)
        return self._source.poll_request() if pending else None

    def _exchange(self, values: list[float]) -> list[float]:
        """Return the minima of values over all ranks, and measure how long that takes.

        A rank that comes early also waits for the others, as it would in the next step. The minimum
        over ranks of the measured time is therefore the cost of the exchange itself.
        """
        device = self._world.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the steps in its queue are not part of the cost
        began = time.monotonic()
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        minima: list[float] = self._world.minimum(shared).tolist()
        self._time = time.monotonic()
        self._cost = self._time - began
        return minima


class StopSignal:
    """Records SIGTERM. A second one ends the process at once, as Ctrl-C does.

    ``reason`` says what has stopped the training, once ``received`` is set.
    """

    def __init__(self) -> None:
        self.received, self.reason = threading.Event(), "stopped by SIGTERM"

    def request(self, reason: str) -> None:
        """Stop the training for another reason than SIGTERM."""
        self.reason = reason
        self.received.set()

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
