"""Charts as inline SVG for self-contained pages: lines, bars and intervals.

Texts are escaped. Series differ in colour, dash and marker, so that no chart depends on colour
alone; the colours are those of Okabe and Ito, which people with colour-blindness tell apart. Lines
of axes and text take the colour of the page's text, in light and in dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#777777")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_TICKS = 5
MARKERS = 4


class Series(NamedTuple):
    """One line: points (K,) within the axes, and the index of the point that is marked, or -1."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    marked: int = -1


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Return a chart whose axes both run from 0 to 1, with the marked points as symbols."""
    parts = [*_axes(x_label, y_label)]
    for number, one in enumerate(series):
        color, dash = PALETTE[number % len(PALETTE)], _DASHES[number // 2 % len(_DASHES)]
        path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" '
            f'stroke-dasharray="{dash}"><title>{escape(one.name)}</title></polyline>'
        )
        if one.marked >= 0:
            parts.append(_marker(number, _x(one.x[one.marked]), _y(one.y[one.marked])))
    return _figure(title, _WIDTH, _HEIGHT, parts)


def legend_symbol(number: int) -> str:
    """Return the line and the marker of a series, for a legend beside the chart."""
    color, dash = PALETTE[number % len(PALETTE)], _DASHES[number // 2 % len(_DASHES)]
    line = (
        f'<line x1="0" y1="8" x2="36" y2="8" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>'
    )
    return (
        '<svg class="key" viewBox="0 0 36 16" width="36" height="16" aria-hidden="true">'
        f"{line}{_marker(number, 18, 8)}</svg>"
    )


def bar(share: float, low: float | None = None, high: float | None = None) -> str:
    """Return a bar for a share from 0 to 1, with a whisker from ``low`` to ``high``."""
    share = min(1.0, max(0.0, share))
    whisker = ""
    if low is not None and high is not None:
        left, right = 100 * min(1.0, max(0.0, low)), 100 * min(1.0, max(0.0, high))
        whisker = (
            f'<path d="M{left:.1f} 2v10M{right:.1f} 2v10M{left:.1f} 7H{right:.1f}" '
            'stroke="currentColor" stroke-width="1.2" fill="none"/>'
        )
    return (
        '<svg class="bar" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="6" width="100" height="2" class="track"/>'
        f'<rect x="0" y="3" width="{100 * share:.1f}" height="8" fill="{PALETTE[0]}"/>'
        f"{whisker}</svg>"
    )


def reliability_chart(
    title: str, score: NDArray[np.float64], precision: NDArray[np.float64]
) -> str:
    """Return mean scores (BINS,) against precision (BINS,), beside the line of equality."""
    parts = [*_axes("score", "precision")]
    parts.append(
        f'<line x1="{_x(0):.1f}" y1="{_y(0):.1f}" x2="{_x(1):.1f}" y2="{_y(1):.1f}" '
        'stroke="currentColor" stroke-dasharray="3 4" opacity=".7"/>'
    )
    known = ~np.isnan(score)
    points = [(_x(x), _y(y)) for x, y in zip(score[known], precision[known], strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{PALETTE[0]}" stroke-width="2"/>')
    parts += [_marker(0, x, y) for x, y in points]
    return _figure(title, _WIDTH, _HEIGHT, parts)


def _figure(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _x(value: float) -> float:
    return _LEFT + float(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - float(value) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in np.linspace(0, 1, _TICKS + 1):
        x, y = _x(tick), _y(tick)
        parts.append(
            f'<path d="M{_x(0):.1f} {y:.1f}H{_x(1):.1f}M{x:.1f} {_y(0):.1f}V{_y(1):.1f}" '
            'class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:.1f}</text>'
        )
    middle_y = (_y(0) + _y(1)) / 2
    parts.append(
        f'<text x="{_x(0.5):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {middle_y:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _marker(number: int, x: float, y: float) -> str:
    color = PALETTE[number % len(PALETTE)]
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"',
        f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"',
        f'<path d="M{x:.1f} {y - 6:.1f}l5.5 10h-11z"',
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"',
    )
    return f'{shapes[number % MARKERS]} fill="{color}" class="marker"/>'
