"""The limit on unreadable samples in a training or an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.errors import UserError

ALWAYS_TOLERATED_SAMPLES = 10

log = logging.getLogger(__name__)


class BadSamples:
    """Count unreadable samples, warn once about each, and stop when there are too many."""

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.problems: dict[str, int] = {}  # line -> how often it occurred
        self.samples_read = 0

    def count(self, samples: int, problems: Sequence[str]) -> None:
        """Add a batch. Raises UserError with the list when both limits are exceeded."""
        self.samples_read += samples
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s: skipped", problem)
            self.problems[problem] = self.problems.get(problem, 0) + 1
        bad = sum(self.problems.values())
        too_many = len(self.problems) > ALWAYS_TOLERATED_SAMPLES
        if too_many and bad > self.max_fraction * self.samples_read:
            listed = "; ".join(self.problems)
            raise UserError(
                f"{bad} of {self.samples_read} samples could not be read, above "
                f"data.max_bad_fraction {self.max_fraction}: {listed}"
            )
