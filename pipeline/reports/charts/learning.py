"""Learning curves of many trainings, with a mark where one did not end as planned."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pipeline.reports.charts.drawing import figure, key, label, line_style, marker
from pipeline.reports.charts.scale import fit_scale, range_scale

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_MANY = 50  # curves; of more, each is fainter
MAX_POINTS = 120  # of a curve; more are not visible


class Curve(NamedTuple):
    """Scores over epochs (epoch, score), the state of the training, the index of its best score."""

    name: str
    points: Sequence[tuple[float, float]]
    state: str
    best: int = -1


def learning_chart(
    title: str, curves: Sequence[Curve], highlighted: Sequence[str], y_label: str
) -> str:
    """Return a chart in which the ``highlighted`` curves have their own colour, dash and marker.

    All others are grey. The marker is at the best score. A cross, a triangle or a circle marks the
    end of a training that was stopped early, failed or has not finished.
    """
    points = [point for curve in curves for point in curve.points]
    x_scale = range_scale(0.0, max((epoch for epoch, _ in points), default=0.0) or 1.0)
    y_scale = fit_scale([score for _, score in points])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + x_scale.share(point[0]) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - y_scale.share(point[1]) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    parts = []
    for tick, text in zip(x_scale.ticks, x_scale.labels(), strict=True):
        x, y = place((tick, y_scale.low))
        parts.append(f'<path d="M{x:.1f} {_TOP}V{y:.1f}" class="grid"/>')
        parts.append(label(x, y + 16, text, "middle"))
    for tick, text in zip(y_scale.ticks, y_scale.labels(), strict=True):
        x, y = place((x_scale.low, tick))
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{_WIDTH - _RIGHT}" class="grid"/>')
        parts.append(label(_LEFT - 6, y + 4, text, "end"))
    parts.append(label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "epochs", "middle"))
    parts.append(
        f'<text transform="translate(12 {(_HEIGHT - _BOTTOM + _TOP) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    faint = 0.35 if len(curves) <= _MANY else 0.12
    for curve in sorted(curves, key=lambda curve: curve.name in highlighted):
        if curve.points:
            number = highlighted.index(curve.name) if curve.name in highlighted else None
            places = [place(point) for point in thin(curve.points)]
            best = place(curve.points[curve.best])
            parts.append(_curve(curve, places, best, number, faint))
    return figure(title, _WIDTH, _HEIGHT, parts)


def end_symbol(state: str) -> str:
    """Return the mark of a training that ended in a state, for legends and tables."""
    return key(_end(state, 18, 8)) if _end(state, 0, 0) else ""


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points of a curve at even distances, with both ends."""
    if len(points) <= MAX_POINTS:
        return list(points)
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(number * step)] for number in range(MAX_POINTS)]


def _curve(
    curve: Curve,
    places: Sequence[tuple[float, float]],
    best: tuple[float, float],
    number: int | None,
    opacity: float,
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    grey = f'stroke="currentColor" opacity="{opacity}"'
    style = grey if number is None else line_style(number)
    parts = [f"<g><title>{escape(curve.name)}: {escape(curve.state)}</title>"]
    parts.append(f'<polyline points="{path}" fill="none" {style}/>')
    if number is not None:
        parts.append(marker(number, *best))
    elif len(places) == 1:
        x, y = places[0]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="currentColor"/>')
    parts.append(_end(curve.state, *places[-1]))
    return "".join([*parts, "</g>"])


def _end(state: str, x: float, y: float) -> str:
    line = 'stroke="currentColor" stroke-width="1.8" fill="none"'
    if state == "stopped early":
        return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m-8 0l8 -8" {line}/>'
    if state == "failed":
        return f'<path d="M{x - 5:.1f} {y - 4:.1f}h10l-5 8z" {line}/>'
    if state == "unfinished":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {line}/>'
    return ""
