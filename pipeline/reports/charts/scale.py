"""Axes whose ends follow the data: round ticks, and the place of a value between the ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``; ``ticks`` are values between them."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value is, from 0 at the low end to 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def labels(self) -> list[str]:
        """Return the text of each tick, with as many digits as tell them apart."""
        if self.log or len(self.ticks) < 2:
            return [f"{tick:.3g}" for tick in self.ticks]
        step = min(b - a for a, b in pairwise(self.ticks))
        if not 1e-4 <= step < 1e5:
            return [f"{tick:.3g}" for tick in self.ticks]
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [f"{tick:.{digits}f}" for tick in self.ticks]


def fit_scale(values: Iterable[float], ticks: int = 5) -> Scale:
    """Return an axis that ends at round values around the given ones; 0 to 1 without any."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low == high:  # one value, in the middle
        margin = abs(low) / 10 or 0.05
        low, high = low - margin, high + margin
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Scale(values[0], values[-1], values)


def range_scale(low: float, high: float, *, log: bool = False, ticks: int = 4) -> Scale:
    """Return an axis with exactly these ends, ``low < high``; a logarithmic one starts above 0."""
    if log:
        return Scale(low, high, _log_ticks(low, high, ticks), log=True)
    step = _round_step((high - low) / ticks)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Scale(low, high, tuple(float(f"{number * step:.12g}") for number in numbers))


def _log_ticks(low: float, high: float, ticks: int) -> tuple[float, ...]:
    """Return powers of ten, with 2 and 5 times them if few are in the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        values = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            every = -(-len(inside) // (ticks + 1))
            return tuple(inside[::every])
    return (low, math.sqrt(low * high), high)


def _round_step(size: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least ``size``."""
    power = 10.0 ** math.floor(math.log10(size))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= size * (1 - 1e-9))
    return float(f"{factor * power:.12g}")
