"""The least rate of a transfer: timeouts do not end one that brings a byte now and then."""

from __future__ import annotations

import time

# Far below the rate of any usable connection; a shard of 300 MB takes at most a day.
MIN_BYTES, WINDOW_SECONDS = 2**18, 60.0


class SlowTransferError(OSError):
    """A server sent too few bytes in a window; a later attempt may succeed."""


class LeastRate:
    """Counts the bytes of one transfer. The first window begins when it is created."""

    def __init__(self) -> None:
        self._began, self._bytes = time.monotonic(), 0

    def add(self, size: int) -> None:
        """Count received bytes. Raises SlowTransferError at the end of a window with too few."""
        self._bytes += size
        now = time.monotonic()
        if now - self._began < WINDOW_SECONDS:
            return
        if self._bytes < MIN_BYTES:
            raise SlowTransferError(
                f"too slow: {self._bytes} bytes in {now - self._began:.0f} s, the limit is "
                f"{MIN_BYTES} in {WINDOW_SECONDS:.0f} s"
            )
        self._began, self._bytes = now, 0
