"""Save before an elastic training gets more or fewer workers; Ray Train would drop recent steps.

The controller and rank 0 exchange the request and its result through the cluster's key-value store.
"""

from __future__ import annotations

import time

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World

HOLD_SECONDS = 60.0  # the controller polls for the result every few seconds
_NAMESPACE, _SAVED, _FAILED = b"guidance-resize", b"saved", b"failed"
_POLL_SECONDS = 0.2


def request_save(driver: str, workers: int) -> None:
    """Request a checkpoint because of a change to this number of workers."""
    ray_private_api.kv_put(driver.encode(), str(workers).encode(), _NAMESPACE)


def withdraw_request(driver: str) -> None:
    """Withdraw a request, if there is one."""
    ray_private_api.kv_delete(driver.encode(), _NAMESPACE)


def save_result(driver: str) -> bool | None:
    """Return whether the requested checkpoint is written; None as long as that is open."""
    value = ray_private_api.kv_get(driver.encode(), _NAMESPACE)
    return value == _SAVED if value in (_SAVED, _FAILED, None) else None


def requested_workers(driver: str) -> int | None:
    """Return the number of workers of a request without a result, or None."""
    value = ray_private_api.kv_get(driver.encode(), _NAMESPACE)
    return None if value in (_SAVED, _FAILED, None) else int(value)


def hold_for_resize(driver: str, world: World, missing: str | None) -> None:
    """Report the result of a requested save, and wait to be ended. Every rank calls it.

    A further step would be repeated after the change. ``missing`` is the reason why there is no
    checkpoint; then training continues, as it does if the controller does not end the workers.
    """
    until = time.monotonic() + (0.0 if missing else HOLD_SECONDS)
    if world.is_main:
        result = _FAILED if missing else _SAVED
        ray_private_api.kv_put(driver.encode(), result, _NAMESPACE)

    def holds() -> bool:
        return bool(save_result(driver)) and time.monotonic() < until

    # No rank waits longer in a collective than a moment, whatever its timeout is.
    while world.broadcast(holds() if world.is_main else None):
        time.sleep(_POLL_SECONDS)
