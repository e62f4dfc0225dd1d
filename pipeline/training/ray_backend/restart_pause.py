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

    The workers wait, not the controller, which stays free to end them. Raises TrainingStopped, on
    every rank, after SIGTERM to the driver.
    """
    if world.broadcast(_stopped_while_waiting(driver) if world.is_main else None):
        raise TrainingStopped(f"stopped by SIGTERM during an outage; {RESUME_HINT}")


def _stopped_while_waiting(driver: str) -> bool:
    pause = ray_private_api.kv_get(driver.encode(), _NAMESPACE)
    until = time.monotonic() + float(pause or 0)
    while (left := until - time.monotonic()) > 0:
        if stop_requested(driver):
            return True
        time.sleep(min(left, _POLL_SECONDS))
    return False
