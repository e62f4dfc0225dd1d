"""Settings of post-processing, and what a search of them has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.metrics.bootstrap import Interval


@dataclass(frozen=True)
class Settings:
    """Settings of post-processing."""

    nms_iou: float
    class_agnostic: bool
    max_detections: int


@dataclass(frozen=True)
class Tried:
    """The metrics that settings give."""

    settings: Settings
    metrics: dict[str, float]


@dataclass(frozen=True)
class BestSettings:
    """The best settings on a set, and how much better they score than those of the training."""

    metric: str  # ``ap`` or ``ap50``, which ranks the settings
    before: Tried  # with the settings of the training
    best: Tried
    gain: Interval  # of the metric, over images
    score_threshold: float | None = None  # of the highest F1 with the advised settings
    score_thresholds: dict[str, float] = field(default_factory=dict)  # the same, by class

    @property
    def distinguishable(self) -> bool:
        """Return whether the best settings are better beyond the choice of images."""
        return self.best.settings != self.before.settings and self.gain.low > 0

    @property
    def advised(self) -> Tried:
        """Return the best settings, or those of the training if the gain may be noise."""
        return self.best if self.distinguishable else self.before
