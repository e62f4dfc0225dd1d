"""Charts of figures from 0 to 1: curves over thresholds, calibration, and bars in tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.reports.charts.drawing import PALETTE, figure, line_style, marker

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_TICKS = 5


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
        path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
        parts.append(
            f'<polyline points="{path}" fill="none" {line_style(number)}>'
            f"<title>{escape(one.name)}</title></polyline>"
        )
        if one.marked >= 0:
            parts.append(marker(number, _x(one.x[one.marked]), _y(one.y[one.marked])))
    return figure(title, _WIDTH, _HEIGHT, parts)


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
    parts += [marker(0, x, y) for x, y in points]
    return figure(title, _WIDTH, _HEIGHT, parts)


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
