"""Sizes of the anchors of a cell, as in the paper unless configured. Standard library only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_STRIDE = 8
MAX_PER_CELL = 64
MAX_STRIDE = 128


def level_strides(image_size: int) -> tuple[int, ...]:
    """Return the strides of the pyramid's levels: 4 levels below 512 px, 5 from there."""
    return tuple(FIRST_STRIDE << level for level in range(4 if image_size < 512 else 5))


@dataclass(frozen=True)
class AnchorShapes:
    """One anchor for each scale and ratio. Each level has anchors twice as large as the previous.

    Raises ValueError if a value is out of bounds, repeated or missing.
    """

    base: float = 24.0
    """Side in pixels of the square anchor of scale 1 on stride 8."""
    scales: tuple[float, ...] = (1.0, math.sqrt(2.0))
    """Factors of the base."""
    ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
    """Width / height, at the same area."""
    clamp: bool = False
    """Limit both sides to that of the input."""
    strides: tuple[int, ...] = ()
    """Of the levels, each twice the one before; empty: those of `level_strides`."""

    def __post_init__(self) -> None:
        check_strides("strides", self.strides)
        check_base("base", self.base)
        check_factors("scales", self.scales)
        check_factors("ratios", self.ratios)
        check_per_cell(self.scales, self.ratios)

    @classmethod
    def make(
        cls,
        base: float | None = None,
        scales: Sequence[float] | None = None,
        ratios: Sequence[float] | None = None,
        clamp: bool = False,
        strides: Sequence[int] = (),
    ) -> "AnchorShapes":
        """Return the shapes; None takes the paper's value. Raise ValueError."""
        return cls(
            cls.base if base is None else float(base),
            cls.scales if scales is None else tuple(map(float, scales)),
            cls.ratios if ratios is None else tuple(map(float, ratios)),
            clamp,
            tuple(strides),
        )

    def __str__(self) -> str:
        scales, ratios = (", ".join(f"{v:.4g}" for v in vs) for vs in (self.scales, self.ratios))
        limit = ", at most the input's side" if self.clamp else ""
        levels = f", strides {', '.join(map(str, self.strides))}" if self.strides else ""
        return f"base {self.base:.4g} px, scales {scales}, ratios {ratios}{limit}{levels}"

    @property
    def per_cell(self) -> int:
        """Return the number of anchors of each cell."""
        return len(self.scales) * len(self.ratios)

    def level_strides(self, image_size: int) -> tuple[int, ...]:
        """Return the strides of the levels for an input."""
        return self.strides or level_strides(image_size)

    def sizes(self, stride: int, image_size: int) -> list[tuple[float, float]]:
        """Return width and height in pixels of the anchors of a cell, by scale, then ratio."""
        base = self.base * stride / FIRST_STRIDE
        limit = float(image_size) if self.clamp else math.inf
        return [
            (min(base * s * math.sqrt(r), limit), min(base * s / math.sqrt(r), limit))
            for s in self.scales
            for r in self.ratios
        ]


def check_strides(name: str, values: Sequence[int]) -> None:
    """Raise ValueError unless each stride is twice the one before, from 8, 16 or 32 to 128."""
    first = values[0] if values else FIRST_STRIDE
    doubled = all(value == first << level for level, value in enumerate(values))
    if first not in (8, 16, 32) or not doubled or max(values, default=0) > MAX_STRIDE:
        raise ValueError(
            f"{name} are {', '.join(map(str, values))}; give 8, 16 or 32 and doubled values up to "
            f"{MAX_STRIDE}, such as 16, 32, 64"
        )


def check_base(name: str, value: float) -> None:
    """Raise ValueError unless the value is a side in pixels, from 1 to 1024."""
    if not 1 <= value <= 1024:  # also NaN
        raise ValueError(f"{name} is {value:g}; it must be from 1 to 1024 pixels")


def check_factors(name: str, values: Sequence[float]) -> None:
    """Raise ValueError unless the values are one or more different factors from 1/64 to 64."""
    if not values:
        raise ValueError(f"{name} is empty; give at least one number")
    for value in values:
        if not 1 / 64 <= value <= 64:
            raise ValueError(f"{name} contains {value:g}; give numbers from 1/64 to 64")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} contains a number twice: {', '.join(f'{v:g}' for v in values)}")


def check_per_cell(scales: Sequence[float], ratios: Sequence[float]) -> None:
    """Raise ValueError if scales and ratios give more than 64 anchors per cell."""
    if len(scales) * len(ratios) > MAX_PER_CELL:
        raise ValueError(
            f"{len(scales)} scales x {len(ratios)} ratios are more than {MAX_PER_CELL} anchors "
            "per cell; give fewer"
        )
