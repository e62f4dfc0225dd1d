"""End a training whose workers cannot start; Ray Train would retry without end, often silently.

This module is imported only where Ray Train is used, because importing Ray Train takes seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from pipeline.distributed import ray_private_api
from pipeline.errors import TrainingFailed, TrainingStopped
from pipeline.progress import Throttle
from pipeline.storage.redact import mask_output
from pipeline.training.error_hints import last_line
from pipeline.training.ray_backend.preemption import stop_requested
from pipeline.training.stop import RESUME_HINT

MAX_STARTUP_CRASHES = 3  # of workers that had their resources and ended before they trained
POLL_SECONDS, PRINT_SECONDS = 0.5, 60.0
_COORDINATOR = "scaling_policy.autoscaling_coordinator_client"
STARTING_STATES = ("INITIALIZING", "SCHEDULING", "RESCHEDULING", "RESTARTING", "RESIZING")

_ControllerCallback: Any = ray_private_api.controller_callback()
_StartupTimeoutError = ray_private_api.startup_timeout_error()


class StartupTimeout(_ControllerCallback):
    """A callback of Ray Train's controller, which calls it between two attempts to start workers.

    While there are no workers it prints a line every minute. It ends the training after ``seconds``
    without workers, at once after SIGTERM, which only workers poll otherwise, and after a few
    crashes of workers that have their resources. ``label`` is put before every line.
    """

    def __init__(self, driver: str, workers: int, seconds: float, label: str = "") -> None:
        self.driver, self.workers, self.seconds = driver, workers, seconds
        self._label = f"{label}: " if label else ""
        self._since: float | None = None
        self._throttle = Throttle(PRINT_SECONDS)
        self._crashes = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in the controller, before it logs anything."""
        self.__dict__.update(state)
        ray_private_api.train_logger(_COORDINATOR).addFilter(_shortened)

    def after_controller_start(self, train_run_context: Any) -> None:
        """Mask what the controller logs, such as the tracebacks of ranks.

        Ray's traceback of each attempt without resources is hidden; this class reports it.
        """
        mask_output()
        ray_private_api.train_logger("controller.controller").addFilter(_is_not_startup_timeout)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Raise TrainingStopped or TrainingFailed where the training has to end."""
        if ray_private_api.controller_state_name(current_state) not in STARTING_STATES:
            self._since, self._crashes = None, 0
            return
        if previous_state is not current_state:
            self._count_crash(current_state)
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._throttle.restart()
        waited = now - self._since
        if stop_requested(self.driver):
            _hide_tracebacks()
            raise TrainingStopped(f"stopped by SIGTERM while waiting for workers; {RESUME_HINT}")
        if waited > self.seconds:
            _hide_tracebacks()
            raise TrainingFailed(
                f"no resources for {self.workers} workers for {waited / 60:.0f} minutes; add "
                f"nodes, lower ray.workers or raise ray.wait_for_nodes; {RESUME_HINT}"
            )
        if self._throttle.due():
            print(
                f"{self._label}no resources for {self.workers} workers for {waited / 60:.0f} "
                f"minutes; giving up after {self.seconds / 60:.0f} (ray status)",
                file=sys.stderr,
                flush=True,
            )
        if previous_state is current_state:
            time.sleep(POLL_SECONDS)  # Ray Train polls for elastic workers without a pause

    def _count_crash(self, state: Any) -> None:
        error = getattr(getattr(state, "training_failed_error", None), "controller_failure", None)
        if error is None or isinstance(error, _StartupTimeoutError):
            return
        self._crashes += 1
        if self._crashes == MAX_STARTUP_CRASHES:
            _hide_tracebacks()
            raise TrainingFailed(
                f"workers could not be started in {MAX_STARTUP_CRASHES} attempts: "
                f"{last_line(error)}; {RESUME_HINT}"
            )


def _hide_tracebacks() -> None:
    # Users get one line for an error raised here; Ray would log its traceback as well.
    for module in ("callback_manager", "controller.controller"):
        ray_private_api.train_logger(module).setLevel(logging.CRITICAL)


def _shortened(record: logging.LogRecord) -> bool:
    # Seen on a machine under load. Ray logs a traceback and repeats its request.
    record.msg = "Ray's autoscaler did not respond in time; Ray repeats its request"
    record.args, record.exc_info, record.exc_text = None, None, None
    return True


def _is_not_startup_timeout(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _StartupTimeoutError))
