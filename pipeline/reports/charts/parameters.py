"""Charts of searched parameters: scores over each one, parallel coordinates, and importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.reports.charts.drawing import PALETTE, figure, label, shorten
from pipeline.reports.charts.scale import Scale, fit_scale

_WIDTH, _SIDE = 400, 16
_SLICE_HEIGHT, _LEFT, _TOP, _BOTTOM = 240, 58, 12, 40
_ROW = 36  # of a value of a list, of a bar
_AXIS = 64  # between two parallel axes
_MAX_NAME = 58  # characters that fit in the width
_ABSENT = 0.12  # of the width of an axis, for trials without the parameter


@dataclass(frozen=True)
class Axis:
    """A parameter, and its value in each trial as a share of its range; None where absent.

    ``ticks`` are shares with texts. The values of a ``categorical`` one are its ticks.
    """

    name: str
    shares: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]
    categorical: bool = False

    @classmethod
    def of_numbers(cls, name: str, values: Sequence[float | None], scale: Scale) -> Axis:
        """Return the axis of a range."""
        shares = [None if value is None else scale.share(value) for value in values]
        ticks = zip(map(scale.share, scale.ticks), scale.labels(), strict=True)
        return cls(name, shares, list(ticks))

    @classmethod
    def of_list(cls, name: str, values: Sequence[int | None], labels: Sequence[str]) -> Axis:
        """Return the axis of a list; ``values`` are indices of ``labels``."""
        places = [(number + 0.5) / len(labels) for number in range(len(labels))]
        shares = [None if value is None else places[value] for value in values]
        return cls(name, shares, list(zip(places, labels, strict=True)), True)


@dataclass(frozen=True)
class Scores:
    """The names and scores of trials, which of them ran to their end, and which is the best."""

    names: Sequence[str]
    values: Sequence[float]
    complete: Sequence[bool]
    best: int


def slice_chart(axis: Axis, scores: Scores, score_label: str) -> str:
    """Return the scores over one parameter; a list has a row per value."""
    scale = fit_scale(scores.values)
    return (_rows if axis.categorical else _scatter)(axis, scores, scale, score_label)


def parallel_chart(title: str, axes: Sequence[Axis], scores: Scores, score_label: str) -> str:
    """Return one line per trial across horizontal axes, the score and then the parameters.

    The better the score, the more opaque is the line. Where a trial has no value, its line crosses
    the axis left of its scale.
    """
    scale = fit_scale(scores.values)
    parts = []
    order = sorted(range(len(scores.values)), key=lambda trial: _goodness(scores, trial))
    for rank, trial in enumerate(order):
        places = [(_across(scale.share(scores.values[trial])), _down(0))]
        for number, axis in enumerate(axes, 1):
            places.append((_across(axis.shares[trial]), _down(number)))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        # Of many lines, all but the best are faint.
        strength = (rank / max(1, len(order) - 1)) ** max(1.0, len(order) / 40)
        opacity = 0.06 + 0.6 * strength
        style = f'stroke="{PALETTE[0]}" stroke-width="1.3" opacity="{opacity:.2f}"'
        if trial == scores.best:
            style = f'stroke="{PALETTE[1]}" stroke-width="2.5"'
        parts.append(f'<polyline points="{path}" fill="none" {style}>{_title(scores, trial)}')
        parts.append("</polyline>")
        if trial == scores.best:
            parts += [_point(x, y, best=True) for x, y in places]
    parts.append(_parallel_axis(0, score_label, _ticks(scale), absent=False))
    for number, axis in enumerate(axes, 1):
        absent = any(share is None for share in axis.shares)
        parts.append(
            _parallel_axis(number, axis.name, axis.ticks, absent=absent, lines=1 + axis.categorical)
        )
    return figure(title, _WIDTH, _down(len(axes)) + 22, parts)


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """Return a bar per name for shares from 0 to 1."""
    parts = []
    for number, (name, share) in enumerate(bars):
        y = _ROW * number
        width = max(1.0, share * (_WIDTH - 4))
        parts.append(f"<g><title>{escape(name)}</title>")
        parts.append(label(2, y + 14, shorten(name, _MAX_NAME - 6)))
        parts.append(label(_WIDTH - 2, y + 14, f"{share:.0%}", "end"))
        parts.append(f'<rect x="2" y="{y + 20}" width="{_WIDTH - 4}" height="2" class="track"/>')
        parts.append(
            f'<rect x="2" y="{y + 18}" width="{width:.1f}" height="6" fill="{PALETTE[0]}"/></g>'
        )
    return figure(title, _WIDTH, _ROW * len(bars) + 2, parts)


def _scatter(axis: Axis, scores: Scores, scale: Scale, score_label: str) -> str:
    def place(share: float, score: float) -> tuple[float, float]:
        y = _SLICE_HEIGHT - _BOTTOM - score * (_SLICE_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + share * (_WIDTH - _LEFT - _SIDE), y

    parts = []
    for share, text in _ticks(scale):
        x, y = place(0, share)
        parts.append(f'<path d="M{x} {y:.1f}H{_WIDTH - _SIDE}" class="grid"/>')
        parts.append(label(_LEFT - 6, y + 4, text, "end"))
    for share, text in axis.ticks:
        x, y = place(share, 0)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{y:.1f}" class="grid"/>')
        parts.append(label(x, y + 16, text, "middle"))
    middle = (_LEFT + _WIDTH - _SIDE) / 2
    parts.append(label(middle, _SLICE_HEIGHT - 6, shorten(axis.name, _MAX_NAME), "middle"))
    parts.append(
        f'<text transform="translate(12 {_SLICE_HEIGHT / 2 - 14:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(score_label)}</text>'
    )
    for trial in _drawn_last(scores):
        own = axis.shares[trial]
        if own is not None:
            place_of = place(own, scale.share(scores.values[trial]))
            parts.append(_trial_point(scores, trial, *place_of))
    return figure(f"{score_label} over {axis.name}", _WIDTH, _SLICE_HEIGHT, parts)


def _rows(axis: Axis, scores: Scores, scale: Scale, score_label: str) -> str:
    height = _TOP + 12 + _ROW * len(axis.ticks) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [label(2, _TOP, shorten(axis.name, _MAX_NAME))]
    for share, text in _ticks(scale):
        x = _across(share)
        parts.append(f'<path d="M{x:.1f} {_TOP + 6}V{bottom}" class="grid"/>')
        parts.append(label(x, bottom + 16, text, "middle"))
    parts.append(label(_WIDTH / 2, height - 6, score_label, "middle"))
    rows = {share: _TOP + 12 + _ROW * number for number, (share, _) in enumerate(axis.ticks)}
    for share, text in axis.ticks:
        count = sum(own == share for own in axis.shares)
        name = f"{shorten(text, _MAX_NAME - 6)} ({count})"
        parts.append(f'<g class="halo"><title>{escape(text)}</title>')
        parts.append(f"{label(2, rows[share] + 12, name)}</g>")
    for trial in _drawn_last(scores):
        own = axis.shares[trial]
        if own is not None:
            x = _across(scale.share(scores.values[trial]))
            parts.append(_trial_point(scores, trial, x, rows[own] + 24))
    return figure(f"{score_label} over {axis.name}", _WIDTH, height, parts)


def _parallel_axis(
    number: int, name: str, ticks: Sequence[tuple[float, str]], *, absent: bool, lines: int = 1
) -> str:
    """Return an axis with the texts of its ticks above, or by turns above and below it."""
    y = _down(number)
    left, right = _across(0), _across(1)
    parts = [f'<g class="halo"><title>{escape(name)}</title>']
    parts.append(label(2, y - 22, shorten(name, _MAX_NAME)))
    parts.append(f'<path d="M{left:.1f} {y}H{right:.1f}" stroke="currentColor" opacity=".6"/>')
    if absent:
        parts.append(f'<circle cx="{_across(None):.1f}" cy="{y}" r="2" fill="currentColor"/>')
        parts.append(label(_across(None), y - 7, "none", "middle"))
    room = max(3, int(46 * lines / max(1, len(ticks))))  # characters
    for index, (share, text) in enumerate(ticks):
        x, above = _across(share), index % lines == 0
        parts.append(f'<path d="M{x:.1f} {y - 3}v6" stroke="currentColor"/>')
        anchor = "middle" if 0.06 < share < 0.94 else "start" if share < 0.5 else "end"
        parts.append(label(x, y - 7 if above else y + 16, shorten(text, room), anchor))
    return "".join([*parts, "</g>"])


def _across(share: float | None) -> float:
    left = _SIDE + _ABSENT * _WIDTH
    return _SIDE if share is None else left + share * (_WIDTH - _SIDE - left)


def _down(number: int) -> int:
    return 34 + _AXIS * number


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    return list(zip(map(scale.share, scale.ticks), scale.labels(), strict=True))


def _drawn_last(scores: Scores) -> list[int]:
    """Return the trials, those that ran to their end last, and the best at the very end."""
    key = [(trial == scores.best, done) for trial, done in enumerate(scores.complete)]
    return sorted(range(len(key)), key=lambda trial: key[trial])


def _goodness(scores: Scores, trial: int) -> tuple[bool, float]:
    """Return a key that puts the trials nearest to the best score last."""
    return trial == scores.best, -abs(scores.values[trial] - scores.values[scores.best])


def _trial_point(scores: Scores, trial: int, x: float, y: float) -> str:
    title = _title(scores, trial)
    if trial == scores.best:
        return f"<g>{title}{_point(x, y, best=True)}</g>"
    if scores.complete[trial]:
        return f"<g>{title}{_point(x, y, best=False)}</g>"
    return (
        f'<path d="M{x - 3:.1f} {y - 3:.1f}l6 6m-6 0l6 -6" stroke="currentColor" fill="none" '
        f'stroke-width="1.4" opacity=".7">{title}</path>'
    )


def _point(x: float, y: float, *, best: bool) -> str:
    if best:
        return (
            f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{PALETTE[1]}" class="marker"/>'
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{PALETTE[0]}" opacity=".75"/>'


def _title(scores: Scores, trial: int) -> str:
    return f"<title>{escape(scores.names[trial])}: {scores.values[trial]:.4f}</title>"
