"""How many unreadable samples a training or an evaluation puts up with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.errors import UserError

ALWAYS_TOLERATED = 10

log = logging.getLogger(__name__)


class BadSamples:
    """Counts unreadable samples, warns once of each, and stops when they are too many."""

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.problems: dict[str, int] = {}
        self.seen = 0

    def count(self, samples: int, problems: Sequence[str]) -> None:
        """Add a batch. Raises UserError with the list when both limits are passed."""
        self.seen += samples
        for problem in problems:
            if problem not in self.problems:
                log.warning("%s: not used", problem)
            self.problems[problem] = self.problems.get(problem, 0) + 1
        met = sum(self.problems.values())
        if len(self.problems) > ALWAYS_TOLERATED and met > self.max_fraction * self.seen:
            listed = "; ".join(self.problems)
            raise UserError(
                f"{met} of {self.seen} samples could not be read, over data.max_bad_fraction "
                f"{self.max_fraction}: {listed}"
            )
