"""The limit on unreadable samples in a training or an evaluation, over all ranks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.distributed.world import World
from pipeline.errors import UserError

ALWAYS_TOLERATED_SAMPLES = 10
MAX_LISTED_PROBLEMS = 100

log = logging.getLogger(__name__)


class BadSamples:
    """Count unreadable samples, warn once about each, and stop when there are too many.

    Each rank counts its own samples with `count`. All ranks call `check` at the same step, which
    adds up their counts; the totals are those of rank 0.
    """

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.samples_read = self.occurrences = 0
        self.problems: dict[str, int] = {}  # the first lines -> how often each occurred
        self._own_read, self._own = 0, Counter[str]()  # since the last check
        self._warned: set[str] = set()

    @property
    def unchecked(self) -> int:
        """Return the number of unreadable samples of this rank since the last check."""
        return self._own.total()

    def pending(self) -> tuple[int, list[str]]:
        """Return the samples that this rank has read since the last check, and their problems."""
        return self._own_read, list(self._own.elements())

    def restore(self, samples_read: int, occurrences: int, problems: Mapping[str, int]) -> None:
        """Set the totals to those of a checkpoint."""
        self.samples_read, self.occurrences = samples_read, occurrences
        self.problems = dict(problems)

    def count(self, samples: int, problems: Sequence[str]) -> None:
        """Add a batch of this rank."""
        self._own_read += samples
        self._own.update(problems)
        for problem in problems:
            if problem not in self._warned:
                self._warned.add(problem)
                log.warning("%s: skipped", problem)

    def check(self, world: World) -> None:
        """Add the counts of all ranks to the totals; every rank calls it.

        Raises UserError with the list, on every rank, when both limits are exceeded.
        """
        counts = world.gather((self._own_read, dict(self._own)))
        self._own_read, self._own = 0, Counter()
        for samples, problems in counts or ():
            self._add(samples, problems)
        excess = world.broadcast(self._excess() if world.is_main else None)
        if excess:
            raise UserError(excess)

    def _add(self, samples: int, problems: Mapping[str, int]) -> None:
        self.samples_read += samples
        for problem, count in problems.items():
            self.occurrences += count
            if problem in self.problems or len(self.problems) < MAX_LISTED_PROBLEMS:
                self.problems[problem] = self.problems.get(problem, 0) + count

    def _excess(self) -> str | None:
        too_many = len(self.problems) > ALWAYS_TOLERATED_SAMPLES
        if not too_many or self.occurrences <= self.max_fraction * self.samples_read:
            return None
        more = "; ..." if len(self.problems) == MAX_LISTED_PROBLEMS else ""
        return (
            f"{self.occurrences} of {self.samples_read} samples could not be read, above "
            f"data.max_bad_fraction {self.max_fraction}: {'; '.join(self.problems)}{more}"
        )
