"""Pixels of any size to the network's square input, stretched or letterboxed.

Evaluation and prediction call ``to_input``; training warps with the same geometry and the same
area average before strong reduction, so that all three see alike pixels.
Stands alone (no imports from this project), so that a registered model can carry it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

FILL = (124, 116, 104)  # ImageNet's mean colour, as SSD fills its canvas
View = tuple[float, float, float, float]


def to_input(image: np.ndarray, size: int, fit: str = "stretch") -> np.ndarray:
    """(H,W,3) uint8 to (3,size,size). Boxes go back by the factors ``seen_size`` / size."""
    out = np.empty((size, size, 3), np.uint8)
    fill_input(image, out, fit)
    return np.stack(cv2.split(out))


def seen_size(width: int, height: int, fit: str = "stretch") -> tuple[int, int]:
    """Width and height, in pixels of the image, of what the input shows, from the image's 0, 0."""
    return (max(width, height),) * 2 if fit == "letterbox" else (width, height)


def fill_input(image: np.ndarray, out: np.ndarray, fit: str = "stretch") -> None:
    """Write a whole image (H,W,3) into ``out`` (h,w,3).

    ``stretch`` fills it; ``letterbox`` keeps the aspect, with colour on the right or below.
    """
    height, width = image.shape[:2]
    view = fit_view((0.0, 0.0, width, height), out.shape[1] / out.shape[0], fit)
    warp_view(image, out, Warp(view, 1.0))


def fit_view(view: View, aspect: float, fit: str) -> View:
    """The view itself, or with ``letterbox`` enlarged right or downwards to width / height."""
    if fit == "stretch":
        return view
    x1, y1, x2, y2 = view
    width, height = x2 - x1, y2 - y1
    return x1, y1, x1 + max(width, height * aspect), y1 + max(height, width / aspect)


class Warp(NamedTuple):
    """What of a source is seen, how it was decoded, and whether it is mirrored."""

    view: View  # x1, y1, x2, y2 in source pixels; may reach beyond the image
    scale: float  # at which the source was decoded
    flip: bool = False
    flip_vertical: bool = False


def view_map(warp: Warp, width: int, height: int) -> tuple[float, float, float, float]:
    """scale_x, shift_x, scale_y, shift_y from source pixels to those of a width x height output.

    Both count from the corner of the first pixel.
    """
    x1, y1, x2, y2 = warp.view
    a, b = width / (x2 - x1), height / (y2 - y1)
    across = (-a, a * x2) if warp.flip else (a, -a * x1)
    down = (-b, b * y2) if warp.flip_vertical else (b, -b * y1)
    return *across, *down


def view_matrix(warp: Warp, width: int, height: int) -> np.ndarray:
    """The same as a matrix (2,3)."""
    a, c, b, d = view_map(warp, width, height)
    return np.array(((a, 0.0, c), (0.0, b, d)))


def warp_view(
    image: np.ndarray, out: np.ndarray, warp: Warp, source: tuple[int, int] | None = None
) -> None:
    """Write what of an image (H,W,3) lies in a view into ``out`` (h,w,3).

    ``source`` is the (width, height) of the image before it was decoded at a scale.
    """
    height, width = out.shape[:2]
    source_width, source_height = source or (image.shape[1], image.shape[0])
    x1, y1, x2, y2 = warp.view
    small = reduce(image, (x2 - x1) * warp.scale / width, (y2 - y1) * warp.scale / height)
    if warp.scale == 1 and warp.view == (0, 0, source_width, source_height):
        _stretch_into(small, out, warp)  # the same map, in a third of the time
        return
    matrix = view_matrix(warp, width, height)
    matrix[0, 0] /= warp.scale * small.shape[1] / image.shape[1]
    matrix[1, 1] /= warp.scale * small.shape[0] / image.shape[0]
    # Between pixel centres, as cv2 counts them.
    matrix[0, 2] += 0.5 * matrix[0, 0] - 0.5
    matrix[1, 2] += 0.5 * matrix[1, 1] - 0.5
    beyond = x1 < 0 or y1 < 0 or x2 > source_width or y2 > source_height
    _written(
        cv2.warpAffine(
            small,
            matrix,
            (width, height),
            dst=out,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT if beyond else cv2.BORDER_REPLICATE,
            borderValue=FILL,
        ),
        out,
    )


def reduce(image: np.ndarray, factor_x: float, factor_y: float) -> np.ndarray:
    """Average areas of (H,W,3) so that at most a halving is left of the wanted reduction.

    Linear interpolation looks at two pixels per axis; beyond a halving it would skip some.
    """
    by_x, by_y = math.ceil(factor_x / 2 - 1e-6), math.ceil(factor_y / 2 - 1e-6)
    if by_x <= 1 and by_y <= 1:
        return image
    height, width = image.shape[:2]
    target = max(1, round(width / max(by_x, 1))), max(1, round(height / max(by_y, 1)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)


def _stretch_into(image: np.ndarray, out: np.ndarray, warp: Warp) -> None:
    size = out.shape[1], out.shape[0]
    if not (warp.flip or warp.flip_vertical):
        _written(cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR), out)
        return
    plain = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    code = -1 if warp.flip and warp.flip_vertical else int(warp.flip)
    _written(cv2.flip(plain, code, dst=out), out)


def _written(result: np.ndarray, out: np.ndarray) -> None:
    # cv2 writes into dst if it can; else it answers with an array of its own.
    if result is not out:
        np.copyto(out, result)
