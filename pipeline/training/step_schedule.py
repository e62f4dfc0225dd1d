"""Which steps of a training are evaluated and saved, and how many there are."""

from __future__ import annotations

import math

from pipeline.config import Config
from pipeline.data.loading.sample_order import total_steps


class StepSchedule:
    """The steps after which a training is evaluated and saved, counted from 1."""

    def __init__(self, config: Config, samples: int) -> None:
        self.samples, self.batch_size = samples, config.train.batch_size
        epochs = config.train.epochs_of(samples)
        self.total_steps = total_steps(epochs, samples, self.batch_size)
        self.evaluation_steps = self._every(config.evaluate.every) if config.data.val else set()
        self.checkpoint_steps = self._every(config.train.checkpoint_every) | self.evaluation_steps
        if every := config.train.checkpoint_steps:
            self.checkpoint_steps |= set(range(every, self.total_steps, every))

    def epoch(self, step: int) -> float:
        """Return the number of passes over the training set after a step."""
        return step * self.batch_size / self.samples

    def _every(self, epochs: float) -> set[int]:
        count = math.ceil(self.total_steps * self.batch_size / (epochs * self.samples))
        ends = {total_steps(k * epochs, self.samples, self.batch_size) for k in range(1, count + 1)}
        return {step for step in ends if 0 < step < self.total_steps} | {self.total_steps}
