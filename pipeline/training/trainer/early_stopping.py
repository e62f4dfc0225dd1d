"""Early stopping: when a training has stopped getting better on ``data.val``."""

from __future__ import annotations

from typing import Any


class Patience:
    """Counts evaluations since the last better one; the same on every rank, and in checkpoints."""

    def __init__(self, evaluations: int, improvement: float = 0.0) -> None:
        self.evaluations, self.improvement = evaluations, improvement
        self.best: float | None = None
        self.waited = 0

    def saw(self, score: float) -> None:
        """Take note of an evaluation."""
        if self.best is None or score > self.best + self.improvement:
            self.best, self.waited = score, 0
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether to stop; never without a limit on evaluations."""
        return 0 < self.evaluations <= self.waited

    def state(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"best": self.best, "waited": self.waited}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state made by `state`."""
        self.best, self.waited = state["best"], state["waited"]
