"""Rows of figures with their intervals, and each seed as a dot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from pipeline.reports.charts.drawing import PALETTE, figure, key, label, shorten
from pipeline.reports.charts.scale import fit_scale

_WIDTH, _ROW, _TOP, _BOTTOM, _SIDE = 400, 44, 6, 40, 16
_MAX_NAME = 58  # characters that fit in the width


class Row(NamedTuple):
    """A figure with its interval, which may be unknown; ``dots`` are the values it is the mean of.

    The symbol of a row that is not ``strong`` is hollow.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()
    strong: bool = True


def interval_chart(title: str, rows: Sequence[Row], x_label: str, *, zero: bool = False) -> str:
    """Return a chart with a row per figure, and a line at 0 if it is of differences."""
    known = [v for row in rows for v in (row.value, row.low, row.high, *row.dots) if v is not None]
    scale = fit_scale([*known, 0.0] if zero and known else known)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    bottom = height - _BOTTOM

    def place(value: float) -> float:
        return _SIDE + scale.share(value) * (_WIDTH - 2 * _SIDE)

    parts = []
    for tick, text in zip(scale.ticks, scale.labels(), strict=True):
        parts.append(label(place(tick), bottom + 16, text, "middle"))
    parts.append(label(_WIDTH / 2, height - 6, x_label, "middle"))
    grid = "".join(f"M{place(tick):.1f} 0v20" for tick in scale.ticks)
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        parts.append(f"<g><title>{escape(row.name)}</title>")
        parts.append(f'<path d="{grid}" transform="translate(0 {y + 18})" class="grid"/>')
        if zero:
            line = f"M{place(0):.1f} {y + 18}v20"
            parts.append(f'<path d="{line}" stroke="currentColor" stroke-width="1.5"/>')
        parts.append(label(2, y + 13, shorten(row.name, _MAX_NAME)))
        parts.append(_row(row, place, y + 28))
        parts.append("</g>")
    return figure(title, _WIDTH, height, parts)


def mean_symbol(*, strong: bool = True) -> str:
    """Return the symbol of a mean with its interval, for a legend."""
    row = Row("", 18, 3, 33, (), strong)
    return key(_row(row, lambda value: value, 8))


def dot_symbol() -> str:
    """Return the symbol of one seed, for a legend."""
    return key(_dot(18, 8))


def _row(row: Row, place: Callable[[float], float], y: float) -> str:
    parts = []
    if row.low is not None and row.high is not None:
        left, right = place(row.low), place(row.high)
        parts.append(
            f'<path d="M{left:.1f} {y - 5:.1f}v10M{right:.1f} {y - 5:.1f}v10M{left:.1f} {y:.1f}'
            f'H{right:.1f}" stroke="currentColor" stroke-width="1.5" fill="none"/>'
        )
    x = place(row.value)
    fill = f'fill="{PALETTE[0]}"' if row.strong else 'class="hollow"'
    parts.append(
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" {fill} stroke="{PALETTE[0]}" '
        'stroke-width="1.5"/>'
    )
    parts += [_dot(place(value), y) for value in row.dots]
    return "".join(parts)


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{PALETTE[4]}" stroke="currentColor"/>'
