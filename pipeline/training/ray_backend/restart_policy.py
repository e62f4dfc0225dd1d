"""Decide whether workers are restarted after a failure, and after which pause.

This module is imported only where Ray Train is used, because importing Ray Train takes seconds.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Collection
from typing import Any

from pipeline.distributed import ray_private_api
from pipeline.errors import OutageError, TrainingFailed, UserError
from pipeline.storage.redact import mask
from pipeline.training.error_hints import UnrecoverableFailure
from pipeline.training.ray_backend.restart_pause import set_pause

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 10.0, 300.0
RECOVERED_SECONDS = 600.0  # workers that trained for so long had no outage at their start
NODE_LOSS_SECONDS = 20.0  # Ray marks a silent node as dead within 15 s
_POLL_SECONDS = 0.5

_Base: Any = ray_private_api.failure_policy()
_DECISIONS = ray_private_api.failure_decision()
# Of ranks that lost another one, and of that one.
_LOST_WORKER_ERRORS: tuple[type[Exception], ...] = (
    TrainingFailed,
    *ray_private_api.lost_worker_errors(),
)


class RestartPolicy(_Base):
    """The failure policy of Ray Train's controller.

    A mistake of the user and an unrecoverable failure end the training. After an outage workers are
    restarted ``max_outages`` times, with growing pauses; after a lost node always; after other
    failures ``max_failures`` times, as in ``failure_config``. With -1 there is no limit. ``label``
    is put before every line.
    """

    def __init__(self, failure_config: Any, driver: str, max_outages: int, label: str = "") -> None:
        super().__init__(failure_config)
        self.driver, self.max_outages = driver, max_outages
        self._label = f"{label}: " if label else ""
        self._earlier_dead = dead_nodes()
        self._outages, self._pause, self._last_outage = 0, 0.0, float("-inf")
        self._failures = self._lost_workers = 0

    def make_decision(self, training_failed_error: Any) -> Any:
        """Return the decision about an error of the workers, or of the controller."""
        set_pause(self.driver, 0)
        errors = list(getattr(training_failed_error, "worker_failures", {}).values())
        if any(isinstance(error, UserError | UnrecoverableFailure) for error in errors):
            return _DECISIONS.RAISE
        outages = [error for error in errors if isinstance(error, OutageError)]
        if outages:
            return self._after_outage(outages[0])
        if not errors or ray_private_api.is_preemption(training_failed_error):
            return super().make_decision(training_failed_error)
        return self._after_failure(errors)

    def _after_outage(self, outage: OutageError) -> Any:
        self._outages += 1
        if 0 <= self.max_outages < self._outages:
            return _DECISIONS.RAISE
        now = time.monotonic()
        if now - self._last_outage > self._pause + RECOVERED_SECONDS:
            self._pause = 0.0
        self._last_outage = now
        self._pause = min(MAX_PAUSE_SECONDS, 2 * self._pause or FIRST_PAUSE_SECONDS)
        # At random, or all trainings that use a store would come back at the same moment.
        pause = self._pause * random.SystemRandom().uniform(0.5, 1.0)
        set_pause(self.driver, pause)
        limit = f" of {self.max_outages}" if self.max_outages >= 0 else ""
        text = f"outage {self._outages}{limit}: {outage}; the workers restart in {pause:.0f} s"
        print(mask(f"{self._label}{text}"), file=sys.stderr, flush=True)
        return _DECISIONS.RETRY

    def _after_failure(self, errors: Collection[Exception]) -> Any:
        self._failures += 1
        lost = all(isinstance(error, _LOST_WORKER_ERRORS) for error in errors)
        self._lost_workers += lost
        # Whether a worker is lost because its node died, Ray knows only later.
        until = time.monotonic() + (NODE_LOSS_SECONDS if lost else 0.0)
        while not self._within_limit():
            if time.monotonic() >= until:
                return _DECISIONS.RAISE
            time.sleep(_POLL_SECONDS)
        return _DECISIONS.RETRY

    def _within_limit(self) -> bool:
        limit = self.failure_config.max_failures
        if 0 <= limit < self._failures:
            lost_nodes = len(dead_nodes() - self._earlier_dead)
            return bool(self._failures - min(self._lost_workers, lost_nodes) <= limit)
        return True


def dead_nodes() -> set[str]:
    """Return the ids of the nodes that have left the cluster, except unused ones."""
    import ray

    idle = ray_private_api.idle_drain_reason()
    return {
        node["NodeID"]
        for node in ray.nodes()
        if not node["Alive"] and node.get("DeathReason") != idle
    }
