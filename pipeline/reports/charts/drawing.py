"""What all charts share: colours, dashes, symbols, the figure, and a figure as a file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#777777")
MARKERS = 4
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_STYLE = (
    "svg{background:#fff;color:#1b1b1b;font:12px sans-serif}text{fill:#1b1b1b}"
    ".grid{stroke:#d4d4d4;fill:none}.track{fill:#d4d4d4}.hollow{fill:#fff}"
    ".halo text{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}"
    ".marker{stroke:#fff;stroke-width:1.5}"
)


def figure(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """Return a chart of ``width`` x ``height`` units that takes the width of its place."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def as_file(chart: str) -> str:
    """Return a chart of a page as the text of an SVG file, on white."""
    name = 'xmlns="http://www.w3.org/2000/svg" class="chart"'
    start, end = chart.replace('class="chart"', name, 1).split("</title>", 1)
    return f"{start}</title><style>{_STYLE}</style>{end}\n"


def line_style(number: int) -> str:
    """Return the attributes of the line of a series."""
    dash = _DASHES[number // 2 % len(_DASHES)]
    return f'stroke="{PALETTE[number % len(PALETTE)]}" stroke-width="2" stroke-dasharray="{dash}"'


def legend_symbol(number: int) -> str:
    """Return the line and the marker of a series, for a legend beside the chart."""
    return key(f'<line x1="0" y1="8" x2="36" y2="8" {line_style(number)}/>{marker(number, 18, 8)}')


def key(parts: str) -> str:
    """Return parts of 36 x 16 units as a symbol in a line of text."""
    return (
        '<svg class="key" viewBox="0 0 36 16" width="36" height="16" aria-hidden="true">'
        f"{parts}</svg>"
    )


def marker(number: int, x: float, y: float) -> str:
    """Return the symbol of a series at a place."""
    color = PALETTE[number % len(PALETTE)]
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"',
        f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"',
        f'<path d="M{x:.1f} {y - 6:.1f}l5.5 10h-11z"',
        f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"',
    )
    return f'{shapes[number % MARKERS]} fill="{color}" class="marker"/>'


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    """Return a text at a place; ``anchor`` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def shorten(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters, with an ellipsis where it is cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
