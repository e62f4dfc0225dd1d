"""Draw boxes with readable labels on images, and sheets of ground truth beside detections."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GOLDEN_RATIO = 0.618034
_CAPTION_BACKGROUND, _INK, _PAPER = (32, 32, 32), (16, 16, 16), (255, 255, 255)
_GAP = 8
Color = tuple[int, int, int]  # RGB


class Boxes(NamedTuple):
    """Objects or detections of one image, in its pixels."""

    boxes: np.ndarray
    """(N, 4) xyxy."""
    labels: np.ndarray
    """(N,) indices into the class names."""
    scores: np.ndarray | None = None
    """(N,); None for ground truth."""


def class_color(label: int) -> Color:
    """Return a bright RGB colour; neighbouring classes get clearly different hues."""
    hue = (0.58 + label * _GOLDEN_RATIO) % 1.0
    lightness = (0.50, 0.62, 0.42)[label // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: np.ndarray, found: Boxes, classes: Sequence[str]) -> np.ndarray:
    """Return a copy of (H,W,3) uint8 RGB with boxes, class names and scores; best boxes on top."""
    order = np.arange(len(found.labels))
    texts = [classes[label] for label in found.labels]
    if found.scores is not None:
        order = np.argsort(found.scores, kind="stable")
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, found.scores, strict=True)]
    return draw_boxes(
        image,
        [found.boxes[index] for index in order],
        [texts[index] for index in order],
        [class_color(int(found.labels[index])) for index in order],
    )


def draw_boxes(
    image: np.ndarray, boxes: Sequence[Any], texts: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """Return a copy of (H,W,3) uint8 RGB with boxes xyxy and their texts, the last ones on top.

    Boxes without a text have no label.
    """
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    font = ImageFont.load_default(size=min(max(11, side // 40), 40))
    corners = [_clip_to_pixels(box, canvas.size) for box in boxes]
    # Labels come last: lines of boxes must not cross names.
    for corner, color in zip(corners, colors, strict=True):
        draw.rectangle(corner, outline=color, width=line_width(side))
    for corner, text, color in zip(corners, texts, colors, strict=True):
        if text:
            _draw_label(draw, corner, text, color, font, canvas.size)
    return np.asarray(canvas)


def side_by_side(
    image: np.ndarray, truth: Boxes, found: Boxes, classes: Sequence[str], side: int = 480
) -> np.ndarray:
    """Return ground truth on the left, detections on the right, each at most ``side`` pixels."""
    factor = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    left = draw_detections(small, _scale_boxes(truth, factor), classes)
    right = draw_detections(small, _scale_boxes(found, factor), classes)
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def contact_sheet(
    pairs: Sequence[tuple[np.ndarray, Boxes, Boxes]],
    classes: Sequence[str],
    names: Sequence[str] | None = None,
    side: int = 480,
    columns: int = 2,
) -> np.ndarray:
    """Return one sheet of many triples (image, ground truth, detections), captioned by name."""
    if not pairs:
        raise ValueError("a contact sheet needs at least one image")
    captions = names or [f"image {number}" for number in range(len(pairs))]
    cells = [
        _add_caption(side_by_side(image, truth, found, classes, side), caption, truth, found)
        for (image, truth, found), caption in zip(pairs, captions, strict=True)
    ]
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = max(cell.shape[1] for cell in cells)
    strips = [_join_row([_pad(cell, width) for cell in row], columns) for row in rows]
    return np.concatenate(strips, axis=0)


def line_width(side: int) -> int:
    """Return the width in pixels of a box line on an image with this longer side."""
    return max(2, round(side / 300))


def _draw_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int, int, int],
    text: str,
    color: Color,
    font: Any,
    size: tuple[int, int],
) -> None:
    x1, y1, _, _ = corner
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 6, bottom - top + 5
    x = max(0, min(x1, size[0] - width))
    y = y1 - height if y1 >= height else y1
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 3 - left, y + 2 - top), text, fill=_contrasting_color(color), font=font)


def _contrasting_color(color: Color) -> Color:
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return _INK if luminance > 140 else _PAPER


def _clip_to_pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    # End coordinates are exclusive: the last pixel drawn is the one before them.
    width, height = size
    x1, y1 = (
        min(max(0, round(float(box[0]))), width - 1),
        min(max(0, round(float(box[1]))), height - 1),
    )
    x2, y2 = min(round(float(box[2])), width) - 1, min(round(float(box[3])), height) - 1
    return x1, y1, max(x1, x2), max(y1, y2)


def _scale_boxes(found: Boxes, factor: float) -> Boxes:
    return found._replace(boxes=np.asarray(found.boxes, dtype=np.float64).reshape(-1, 4) * factor)


def _add_caption(image: np.ndarray, name: str, truth: Boxes, found: Boxes) -> np.ndarray:
    height, width = 24, image.shape[1]
    bar = Image.new("RGB", (width, height), _CAPTION_BACKGROUND)
    draw = ImageDraw.Draw(bar)
    font = ImageFont.load_default(size=13)
    draw.text((6, 4), f"{name}   ground truth: {len(truth.labels)}", fill=_PAPER, font=font)
    draw.text((width // 2 + 6, 4), f"detections: {len(found.labels)}", fill=_PAPER, font=font)
    return np.concatenate([np.asarray(bar), image], axis=0)


def _pad(cell: np.ndarray, width: int) -> np.ndarray:
    missing = width - cell.shape[1]
    return np.pad(cell, ((0, _GAP), (0, missing + _GAP), (0, 0)), constant_values=255)


def _join_row(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    height = max(cell.shape[0] for cell in cells)
    blank = np.full((height, cells[0].shape[1], 3), 255, np.uint8)
    filled = [
        np.pad(cell, ((0, height - cell.shape[0]), (0, 0), (0, 0)), constant_values=255)
        for cell in cells
    ]
    return np.concatenate([*filled, *[blank] * (columns - len(cells))], axis=1)
