"""The steps of a training that end an epoch, are evaluated and are saved."""

from __future__ import annotations

import math

from pipeline.config import Config
from pipeline.data.loading.sample_order import total_steps


class Steps:
    """Which steps end an epoch, are evaluated, are saved. Counted from 1, as steps done."""

    def __init__(self, config: Config, samples: int) -> None:
        self.samples, self.batch = samples, config.train.batch_size
        self.total = total_steps(config.train.epochs, samples, self.batch)
        self.evaluations = self._every(config.evaluate.every) if config.data.val else set()
        self.checkpoints = self._every(config.train.checkpoint_every) | self.evaluations
        if every := config.train.checkpoint_steps:
            self.checkpoints |= set(range(every, self.total, every))

    def epoch(self, step: int) -> float:
        """Passes over the training set after a step."""
        return step * self.batch / self.samples

    def _every(self, epochs: float) -> set[int]:
        times = range(1, math.ceil(self.total * self.batch / (epochs * self.samples)) + 1)
        ends = {total_steps(k * epochs, self.samples, self.batch) for k in times}
        return {step for step in ends if 0 < step < self.total} | {self.total}
