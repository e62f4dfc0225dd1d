"""Early stopping: end a training that no longer improves on ``data.val``."""

from __future__ import annotations

from pipeline.checkpoints.meta import EarlyStoppingState


class EarlyStopping:
    """Counts evaluations since the best one; the same on every rank, and saved in checkpoints."""

    def __init__(self, patience: int, min_improvement: float = 0.0) -> None:
        self.patience, self.min_improvement = patience, min_improvement
        self.best: float | None = None
        self.evaluations_since_best = 0

    def update(self, score: float) -> None:
        """Record the score of an evaluation."""
        if self.best is None or score > self.best + self.min_improvement:
            self.best, self.evaluations_since_best = score, 0
        else:
            self.evaluations_since_best += 1

    @property
    def should_stop(self) -> bool:
        """Return whether to stop; never with a patience of 0."""
        return 0 < self.patience <= self.evaluations_since_best

    def state(self) -> EarlyStoppingState:
        """Return the state that a resumed training needs."""
        return EarlyStoppingState(
            best=self.best, evaluations_since_best=self.evaluations_since_best
        )

    def load(self, state: EarlyStoppingState) -> None:
        """Restore a state returned by `state`."""
        self.best, self.evaluations_since_best = state.best, state.evaluations_since_best
