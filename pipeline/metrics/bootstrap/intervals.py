"""Intervals of average precision, and of its gain, from resamples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993: percentile intervals.

Shape letters: R resamples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """AP per class: ``ap`` (C,) of all images, ``samples`` (R,C) of the resamples.

    A class without objects, in the set or in a resample, is NaN.
    """

    ap: _Floats
    samples: _Floats

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the mean AP over classes with its interval."""
        return percentile_interval(
            mean_over_classes(self.ap[None])[0], mean_over_classes(self.samples), confidence
        )

    def class_interval(self, label: int, confidence: float = 0.95) -> Interval:
        """Return the AP of one class with its interval."""
        return percentile_interval(self.ap[label], self.samples[:, label], confidence)


@dataclass(frozen=True)
class Gain:
    """How much the AP of a candidate exceeds that of a reference on the same images."""

    candidate: Resampled
    reference: Resampled

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the difference of the mean AP with its interval."""
        value = (
            mean_over_classes(self.candidate.ap[None])[0]
            - mean_over_classes(self.reference.ap[None])[0]
        )
        samples = mean_over_classes(self.candidate.samples) - mean_over_classes(
            self.reference.samples
        )
        return percentile_interval(value, samples, confidence)

    def class_interval(self, label: int, confidence: float = 0.95) -> Interval:
        """Return the difference of the AP of one class with its interval."""
        value = self.candidate.ap[label] - self.reference.ap[label]
        samples = self.candidate.samples[:, label] - self.reference.samples[:, label]
        return percentile_interval(value, samples, confidence)


def mean_over_classes(ap: _Floats) -> _Floats:
    """Return the mean (R,) over classes (R,C) that have objects; NaN where none has."""
    known = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        mean: _Floats = np.where(known, ap, 0.0).sum(axis=1) / known.sum(axis=1)
    return mean


def percentile_interval(value: float, samples: _Floats, confidence: float) -> Interval:
    """Return a value with the quantiles of its samples (R,); NaN where all samples are."""
    tail = (1.0 - confidence) / 2.0
    if np.isnan(samples).all():
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.nanquantile(samples, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high))
