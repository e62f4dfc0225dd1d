"""Workers that find no room: Ray Train alone would try again for ever, elastic ones in silence.

Imported where Ray Train is used alone, since that import takes seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback

from pipeline.errors import TrainingFailed, TrainingStopped
from pipeline.training.error_hints import told
from pipeline.training.ray_backend.preemption import stop_wanted
from pipeline.training.stop import GO_ON

MOST_CRASHES = 3  # of workers that found room and ended before they trained
LOOK_SECONDS, SAY_SECONDS = 0.5, 60.0
_WAITING = ("INITIALIZING", "SCHEDULING", "RESCHEDULING", "RESTARTING", "RESIZING")


class Waiting(ControllerCallback):
    """Lives in Ray Train's controller, which calls it between two tries to start workers.

    While there are none it says so every minute, ends the training after ``seconds`` of one wait,
    and at once after SIGTERM, which only workers look for otherwise. Workers that have room and yet
    cannot start end it after a few tries.
    """

    def __init__(self, run_uri: str, workers: int, seconds: float) -> None:
        self.run_uri, self.workers, self.seconds = run_uri, workers, seconds
        self._since: float | None = None
        self._said = 0.0
        self._crashes = 0

    def after_controller_start(self, train_run_context: Any) -> None:
        """Leave out Ray's traceback each time that there is no room: that is told here."""
        _logger("controller.controller").addFilter(_is_no_wait)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Raises what ends the training."""
        if current_state._state_type.name not in _WAITING:
            self._since, self._crashes = None, 0
            return
        if previous_state is not current_state:
            self._count_crash(current_state)
        now = time.monotonic()
        if self._since is None:
            self._since = self._said = now
        waited = now - self._since
        if stop_wanted(self.run_uri):
            _quietly()
            raise TrainingStopped(f"stopped by SIGTERM while waiting for workers; {GO_ON}")
        if waited > self.seconds:
            _quietly()
            raise TrainingFailed(
                f"no room for {self.workers} workers for {waited / 60:.0f} minutes; add nodes, or "
                f"lower ray.workers, or raise ray.wait_for_nodes; {GO_ON}"
            )
        if now - self._said >= SAY_SECONDS:
            self._said = now
            print(
                f"no room for {self.workers} workers for {waited / 60:.0f} minutes; giving up "
                f"after {self.seconds / 60:.0f} (ray status)",
                file=sys.stderr,
                flush=True,
            )
        if previous_state is current_state:
            time.sleep(LOOK_SECONDS)  # elastic workers are looked for without a pause

    def _count_crash(self, state: Any) -> None:
        error = getattr(getattr(state, "training_failed_error", None), "controller_failure", None)
        if error is None or isinstance(error, WorkerGroupStartupTimeoutError):
            return
        self._crashes += 1
        if self._crashes == MOST_CRASHES:
            _quietly()
            raise TrainingFailed(
                f"workers could not be started in {MOST_CRASHES} tries: {told(error)}; {GO_ON}"
            )


def _quietly() -> None:
    # What is raised here is one line to the user; Ray would add its traceback.
    for name in ("callback_manager", "controller.controller"):
        _logger(name).setLevel(logging.CRITICAL)


def _is_no_wait(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], WorkerGroupStartupTimeoutError))


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(f"ray.train.v2._internal.execution.{name}")
