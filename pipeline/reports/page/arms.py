"""Trainings of variants on several seeds, as pages show them: figures of arms, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.reports.charts.intervals import Row, dot_symbol, interval_chart, mean_symbol

METRIC_TITLES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True)
class ArmFigures:
    """A variant: the mean over seeds of the deciding metric with its interval, and other means.

    ``seeds`` has the metric of each seed. ``metrics`` are means of other metrics by their key,
    ``spread`` is the standard deviation over seeds, ``text`` what the variant sets. What is not
    known is None or absent.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    seeds: Mapping[int, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    spread: float | None = None
    seconds_per_step: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Difference:
    """By how much ``candidate`` exceeds ``reference``, with the interval of the difference."""

    candidate: str
    reference: str
    gain: float
    low: float
    high: float
    distinguishable: bool

    @property
    def verdict(self) -> str:
        """Return in words what the interval says about the two."""
        if not self.distinguishable:
            return "may be noise"
        return "better" if self.gain > 0 else "worse"


def arms_chart(arms: Sequence[ArmFigures], metric: str) -> str:
    """Return the mean and interval of each arm with its seeds as dots."""
    rows = [
        Row(arm.name, arm.value, arm.low, arm.high, list(arm.seeds.values()))
        for arm in arms
        if arm.value is not None
    ]
    return interval_chart(f"{metric} of each arm", rows, metric)


def differences_chart(differences: Sequence[Difference], metric: str) -> str:
    """Return each difference with its interval, hollow where it is not distinguishable from 0."""
    rows = [
        Row(f"{d.candidate} − {d.reference}", d.gain, d.low, d.high, (), d.distinguishable)
        for d in differences
    ]
    return interval_chart(f"Differences of {metric}", rows, f"difference of {metric}", zero=True)


def arm_symbols() -> dict[str, str]:
    """Return the symbols that the legends of both charts explain."""
    return {"mean": mean_symbol(), "hollow": mean_symbol(strong=False), "dot": dot_symbol()}


def metric_title(key: str) -> str:
    """Return how pages name a metric: ``val/ap`` and ``ap`` are AP."""
    name = key.removeprefix("val/")
    return METRIC_TITLES.get(name, name)
