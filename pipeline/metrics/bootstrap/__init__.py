"""Bootstrap intervals of average precision over images, for a model, a pair, and several seeds."""

from pipeline.metrics.bootstrap.intervals import Gain, Interval, Resampled
from pipeline.metrics.bootstrap.resampling import (
    RESAMPLES,
    bootstrap,
    image_weights,
    paired_bootstrap,
)
from pipeline.metrics.bootstrap.seeds import SeedResampled, pooled_gains, seed_bootstrap

__all__ = [
    "RESAMPLES",
    "Gain",
    "Interval",
    "Resampled",
    "SeedResampled",
    "bootstrap",
    "image_weights",
    "paired_bootstrap",
    "pooled_gains",
    "seed_bootstrap",
]
