"""Intervals of average precision over images and over the seeds of trainings.

Several arms, such as recipes, are trained on a few seeds each and evaluated on the same images. The
AP of an arm is the mean over its seeds. Its interval has two parts:

- Images are resampled, the same ones for all arms and seeds.
- Seeds cannot be resampled: two or three values, drawn with replacement, never leave the range of
  those values, which contains the mean of all possible seeds in only half of the cases for two.
  Instead, the variance over seeds is estimated within the arms and pooled over them, as in an
  analysis of variance, and the mean of each arm is moved by a draw of Student's t distribution with
  the degrees of freedom of that estimate. This assumes that seeds vary the AP of all arms equally.

If each arm has one seed, images alone are resampled; the interval then says nothing about seeds.

Sources: Student, The probable error of a mean, Biometrika 6, 1908; Efron and Tibshirani, An
Introduction to the Bootstrap, 1993.

Shape letters: R resamples, S seeds, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Protocol
from pipeline.metrics.bootstrap.intervals import (
    Interval,
    Resampled,
    mean_over_classes,
    percentile_interval,
)
from pipeline.metrics.bootstrap.resampling import RESAMPLES, bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS, MatchTable

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeedResampled:
    """The AP of arms by name: one item of ``resampled`` per seed, over the same images.

    ``draws`` (R,) has, for each arm, its draws of Student's t distribution; those of two arms share
    the estimated variance. They are 0 if no arm has two seeds.
    """

    resampled: Mapping[str, Sequence[Resampled]]
    draws: Mapping[str, _Floats]

    def per_seed(self, arm: str, label: int | None = None) -> _Floats:
        """Return the AP (S,) of each seed: the mean over classes, or that of one class."""
        return np.concatenate([_choose(item.ap[None], label) for item in self.resampled[arm]])

    def spread(self, label: int | None = None) -> float:
        """Return the standard deviation over seeds, pooled over arms; NaN with one seed each."""
        values = [self.per_seed(arm, label) for arm in self.resampled]
        freedom = degrees_of_freedom(list(map(len, values)))
        total = sum(float(((item - item.mean()) ** 2).sum()) for item in values)
        return float(np.sqrt(total / freedom)) if freedom else float("nan")

    def interval(self, arm: str, label: int | None = None, confidence: float = 0.95) -> Interval:
        """Return the mean AP over seeds of one arm, of all classes or of one, with its interval."""
        found = percentile_interval(*self._samples(arm, label), confidence)
        low, high = np.clip([found.low, found.high], 0.0, 1.0).tolist()
        return Interval(found.value, low, high)

    def gain(
        self, candidate: str, reference: str, label: int | None = None, confidence: float = 0.95
    ) -> Interval:
        """Return by how much one arm exceeds another, with the interval of the difference."""
        return percentile_interval(*self.gain_samples(candidate, reference, label), confidence)

    def gain_samples(
        self, candidate: str, reference: str, label: int | None = None
    ) -> tuple[float, _Floats]:
        """Return by how much one arm exceeds another, for all images and in each resample (R,)."""
        value, samples = self._samples(candidate, label)
        other, others = self._samples(reference, label)
        return value - other, samples - others

    def simultaneous_gains(
        self, pairs: Sequence[tuple[str, str]], confidence: float = 0.95
    ) -> list[Interval]:
        """Return the `gain` of each pair with intervals that all hold together."""
        return pooled_gains([self], pairs, confidence)

    def _samples(self, arm: str, label: int | None) -> tuple[float, _Floats]:
        """Return the mean over seeds for all images, and for each resample (R,)."""
        seeds = self.resampled[arm]
        samples: _Floats = np.mean([_choose(item.samples, label) for item in seeds], axis=0)
        if self.draws[arm].any():
            samples = samples + self.spread(label) / np.sqrt(len(seeds)) * self.draws[arm]
        return float(self.per_seed(arm, label).mean()), samples


def pooled_gains(
    sets: Sequence[SeedResampled], pairs: Sequence[tuple[str, str]], confidence: float = 0.95
) -> list[Interval]:
    """Return the mean `gain` over sets of each pair of arms, with intervals that all hold together.

    Among many pairs of equal arms, some intervals of a pair alone would exclude 0 by chance. These
    are as many standard errors wide as ``confidence`` of the resamples stay within for all pairs at
    once (Westfall and Young, Resampling-Based Multiple Testing, 1993). The sets have the same
    arms, the same number of resamples, and each its own images and ``seed`` of `seed_bootstrap`.
    """
    if not pairs:
        return []
    gains, rows = [], []
    for candidate, reference in pairs:
        found = [item.gain_samples(candidate, reference) for item in sets]
        gains.append(float(np.mean([gain for gain, _ in found])))
        rows.append(np.mean([samples for _, samples in found], axis=0))
    drawn = np.array(rows)  # (pairs,R)
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]  # without resamples that have no object
    if drawn.shape[1] < 2:
        return [Interval(gain, float("nan"), float("nan")) for gain in gains]
    errors = drawn.std(axis=1, ddof=1)
    off = np.abs(drawn - drawn.mean(axis=1, keepdims=True))
    scaled = np.divide(off, errors[:, None], out=np.zeros_like(off), where=errors[:, None] > 0)
    width = errors * float(np.quantile(scaled.max(axis=0), confidence))
    return [
        Interval(gain, gain - half, gain + half)
        for gain, half in zip(gains, width.tolist(), strict=True)
    ]


def seed_bootstrap(
    arms: Mapping[str, Sequence[MatchTable]],
    classes: int,
    ious: Sequence[int] = tuple(range(len(IOU_THRESHOLDS))),
    resamples: int = RESAMPLES,
    seed: int = 0,
    protocol: Protocol = "coco",
    area: int = 0,
) -> SeedResampled:
    """Resample the images of all arms, which have one table per seed, and draw seeds.

    ``ious`` and ``area`` are those of `bootstrap`. Images may be in any order. Raises
    ValueError if the tables do not have the same images, or an arm has none.
    """
    tables = {arm: [table.sorted_by_image_id() for table in arms[arm]] for arm in arms}
    first = next((item for items in tables.values() for item in items), None)
    for arm, items in tables.items():
        if not items:
            raise ValueError(f"no match table of {arm}")
        for item in items:
            if first is not None and not np.array_equal(item.image_ids, first.image_ids):
                raise ValueError(f"the match tables of {arm} do not have the images of the others")
    resampled = {
        arm: [bootstrap(item, classes, ious, resamples, seed, area, protocol) for item in items]
        for arm, items in tables.items()
    }
    generator = np.random.default_rng([seed, 1])  # independent of that of the images
    counts = {arm: len(items) for arm, items in tables.items()}
    return SeedResampled(resampled, draw_seeds(counts, resamples, generator))


def draw_seeds(
    seeds: Mapping[str, int], resamples: int, generator: np.random.Generator
) -> dict[str, _Floats]:
    """Return, for the number of seeds of each arm, its draws (R,) of Student's t distribution."""
    freedom = degrees_of_freedom(list(seeds.values()))
    scale = np.zeros(resamples)
    if freedom:
        scale = np.sqrt(freedom / generator.chisquare(freedom, resamples))
    return {arm: scale * generator.standard_normal(resamples) for arm in seeds}


def degrees_of_freedom(seeds: Sequence[int]) -> int:
    """Return those of the variance over seeds, given the number of seeds of each arm."""
    return sum(seeds) - len(seeds)


def _choose(ap: _Floats, label: int | None) -> _Floats:
    """Return of (R,C) the mean over classes or one class (R,)."""
    return mean_over_classes(ap) if label is None else ap[:, label]
