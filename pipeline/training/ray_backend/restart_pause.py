"""The pause before workers train again after an outage, set by the controller for all ranks."""

from __future__ import annotations

import time

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.errors import TrainingStopped
from pipeline.training.ray_backend.preemption import stop_requested
from pipeline.training.stop import RESUME_HINT

_NAMESPACE = b"guidance-pause"
_POLL_SECONDS = 0.5


def set_pause(driver: str, seconds: float) -> None:
    """Set the pause of the workers that start next; 0 for none."""
    key = driver.encode()
    if seconds:
        ray_private_api.kv_put(key, str(seconds).encode(), _NAMESPACE)
    else:
        ray_private_api.kv_delete(key, _NAMESPACE)


def wait_for_pause(driver: str, world: World) -> None:
    """Wait until the pause has passed. Every rank calls it.

    The workers wait, not the controller, which stays free to end them. No rank waits longer in a
    collective than a moment, whatever ``ray.collective_timeout`` is. Raises TrainingStopped, on
    every rank, after SIGTERM to the driver.
    """
    until = time.monotonic() + _pause(driver) if world.is_main else 0.0
    while True:
        stopped, waiting = world.broadcast(_look(driver, until) if world.is_main else None)
        if stopped:
            raise TrainingStopped(f"stopped by SIGTERM during an outage; {RESUME_HINT}")
        if not waiting:
            return
        time.sleep(_POLL_SECONDS)


def _pause(driver: str) -> float:
    return float(ray_private_api.kv_get(driver.encode(), _NAMESPACE) or 0)


def _look(driver: str, until: float) -> tuple[bool, bool]:
    """Return whether the driver stops the training, and whether the pause lasts."""
    waiting = time.monotonic() < until
    return waiting and bool(stop_requested(driver)), waiting
