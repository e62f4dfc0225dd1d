"""Progress of long work: one plain line on stderr every few seconds, for terminals and logs."""

from __future__ import annotations

import sys
import time

REPORT_SECONDS = 2.0


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 shard`` and ``2 shards``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Throttle:
    """Limits reports to one every few seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Make the next report due after a whole period."""
        self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether a report is due, and start the next period if it is."""
        if time.monotonic() - self._last < self.seconds:
            return False
        self.restart()
        return True


class Progress:
    """Items done, their rate and the time left."""

    def __init__(self, title: str, total: int = 0, unit: str = "images") -> None:
        """Start counting ``total`` items (0: unknown) under a ``title`` such as "converting"."""
        self.title, self.total, self.unit = title, total, unit
        self.done = self.skipped = 0
        self._reported = False
        self.restart()

    def restart(self) -> None:
        """Measure the rate from now on."""
        self._began = time.monotonic()
        self._throttle = Throttle(REPORT_SECONDS)

    def skip(self, count: int) -> None:
        """Count items that were done earlier; they do not count for the rate."""
        self.skipped += count

    def advance(self, count: int = 1) -> None:
        """Count items, and report if it is time."""
        self.done += count
        if self.done and self._throttle.due():
            self._reported = True
            finished = self.done + self.skipped
            left = max(self.total - finished, 0) / self.rate()
            counts = f"{finished}/{self.total or '?'} {self.unit}"
            self._print(f"{counts}, {self.rate():.0f}/s, {left:.0f} s left")

    def finish(self) -> None:
        """Report the totals, unless the work ended before its first report."""
        if self.skipped:
            self._print(f"{self.skipped} {self.unit} were done before")
        if self._reported:
            self._print(f"{self.done} {self.unit}, {self.rate():.0f}/s")

    def rate(self) -> float:
        """Return the items per second so far."""
        return self.done / max(time.monotonic() - self._began, 1e-6)

    def _print(self, text: str) -> None:
        print(f"  {self.title}: {text}", file=sys.stderr, flush=True)
