"""Bootstrap intervals of average precision over images, for one model or for a pair."""

from pipeline.metrics.bootstrap.intervals import Gain, Interval, Resampled
from pipeline.metrics.bootstrap.resampling import (
    RESAMPLES,
    bootstrap,
    image_weights,
    paired_bootstrap,
)

__all__ = [
    "RESAMPLES",
    "Gain",
    "Interval",
    "Resampled",
    "bootstrap",
    "image_weights",
    "paired_bootstrap",
]
