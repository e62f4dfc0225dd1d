"""Resize images of any size to the network's square input, stretched or letterboxed.

Evaluation and prediction call `to_input`. Training warps with the same geometry, and averages areas
in the same way before a strong reduction, so all three see the same pixels.
This module stands alone (no imports from this project), so a registered model can include it.

Shape letters: H, W image height and width; h, w output height and width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

FILL_COLOUR = (124, 116, 104)  # ImageNet's mean, with which SSD fills its canvas
View = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the source


class Warp(NamedTuple):
    """How a source maps to the output."""

    view: View  # the visible rectangle; may extend beyond the image
    scale: float  # at which the source was decoded
    flip: bool = False  # horizontally
    flip_vertical: bool = False
    interpolation: int = cv2.INTER_LINEAR
    affine: np.ndarray | None = None  # (2,3) that moves the source's pixels before the view


def to_input(image: np.ndarray, size: int, fit: str = "stretch") -> np.ndarray:
    """Return the input (3,size,size) of an image (H,W,3), both uint8.

    Multiply boxes by `visible_size` / size to map them back to the image.
    """
    out = np.empty((size, size, 3), np.uint8)
    fill_input(image, out, fit)
    return np.stack(cv2.split(out))


def visible_size(width: int, height: int, fit: str = "stretch") -> tuple[int, int]:
    """Return the width and height, in image pixels, of the area that the input shows.

    The area begins at the image's top left corner; with ``letterbox`` it exceeds the image.
    """
    return (max(width, height),) * 2 if fit == "letterbox" else (width, height)


def fill_input(image: np.ndarray, out: np.ndarray, fit: str = "stretch") -> None:
    """Write a whole image (H,W,3) to ``out`` (h,w,3).

    ``stretch`` fills it; ``letterbox`` keeps the aspect ratio and pads on the right or below.
    """
    height, width = image.shape[:2]
    view = fit_view((0.0, 0.0, width, height), out.shape[1] / out.shape[0], fit)
    warp_view(image, out, Warp(view, 1.0))


def fit_view(view: View, aspect: float, fit: str) -> View:
    """Return the view; ``letterbox`` extends it right or down to ``aspect``, width / height."""
    if fit == "stretch":
        return view
    x1, y1, x2, y2 = view
    width, height = x2 - x1, y2 - y1
    return x1, y1, x1 + max(width, height * aspect), y1 + max(height, width / aspect)


def view_map(warp: Warp, width: int, height: int) -> tuple[float, float, float, float]:
    """Return scale_x, shift_x, scale_y, shift_y from source pixels to width x height output pixels.

    Both coordinates start at the outer corner of the first pixel.
    """
    x1, y1, x2, y2 = warp.view
    a, b = width / (x2 - x1), height / (y2 - y1)
    across = (-a, a * x2) if warp.flip else (a, -a * x1)
    down = (-b, b * y2) if warp.flip_vertical else (b, -b * y1)
    return *across, *down


def view_matrix(warp: Warp, width: int, height: int) -> np.ndarray:
    """Return the map of `view_map` as an affine matrix (2,3), after the warp's own."""
    a, c, b, d = view_map(warp, width, height)
    matrix = np.array(((a, 0.0, c), (0.0, b, d)))  # (2,3)
    if warp.affine is not None:
        matrix = np.array(((a,), (b,))) * warp.affine + ((0.0, 0.0, c), (0.0, 0.0, d))  # (2,3)
    return matrix


def source_pixels(warp: Warp, width: int, height: int) -> tuple[float, float]:
    """Return the pixels of the source that an output spans along each of the source's axes."""
    if warp.affine is None:
        x1, y1, x2, y2 = warp.view
        return x2 - x1, y2 - y1
    across, down = np.linalg.norm(view_matrix(warp, width, height)[:, :2], axis=0).tolist()
    return width / across, height / down


def warp_view(
    image: np.ndarray, out: np.ndarray, warp: Warp, source: tuple[int, int] | None = None
) -> None:
    """Write the view of an image (H,W,3) to ``out`` (h,w,3).

    ``source`` is the (width, height) of the image before it was decoded at a scale.
    """
    height, width = out.shape[:2]
    source_width, source_height = source or (image.shape[1], image.shape[0])
    x1, y1, x2, y2 = warp.view

    # Strong reductions first, by averaging areas.
    across, down = source_pixels(warp, width, height)
    small = average_areas(image, across * warp.scale / width, down * warp.scale / height)

    # A view of the whole image needs no affine warp: the same map in a third of the time.
    whole = warp.view == (0, 0, source_width, source_height)
    if warp.scale == 1 and whole and warp.affine is None:
        _stretch(small, out, warp)
        return

    # From pixels of the reduced image instead of the source's.
    matrix = view_matrix(warp, width, height)  # (2,3)
    matrix[:, 0] /= warp.scale * small.shape[1] / image.shape[1]
    matrix[:, 1] /= warp.scale * small.shape[0] / image.shape[0]

    # cv2 counts from pixel centres, `view_map` from corners.
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5

    # One warp; outside the image is the fill colour.
    beyond = x1 < 0 or y1 < 0 or x2 > source_width or y2 > source_height
    beyond = beyond or warp.affine is not None
    warped = cv2.warpAffine(
        small,
        matrix,
        (width, height),
        dst=out,
        flags=warp.interpolation,
        borderMode=cv2.BORDER_CONSTANT if beyond else cv2.BORDER_REPLICATE,
        borderValue=FILL_COLOUR,
    )  # (h,w,3)
    _ensure_written(warped, out)


def average_areas(image: np.ndarray, factor_x: float, factor_y: float) -> np.ndarray:
    """Reduce (H,W,3) by averaging areas until at most a halving of the factors remains.

    Linear interpolation reads two pixels per axis; beyond a halving it would skip some.
    """
    by_x, by_y = math.ceil(factor_x / 2 - 1e-6), math.ceil(factor_y / 2 - 1e-6)
    if by_x <= 1 and by_y <= 1:
        return image
    height, width = image.shape[:2]
    target = max(1, round(width / max(by_x, 1))), max(1, round(height / max(by_y, 1)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)


def _stretch(image: np.ndarray, out: np.ndarray, warp: Warp) -> None:
    size = out.shape[1], out.shape[0]
    if not (warp.flip or warp.flip_vertical):
        _ensure_written(cv2.resize(image, size, dst=out, interpolation=warp.interpolation), out)
        return
    plain = cv2.resize(image, size, interpolation=warp.interpolation)  # (h,w,3)
    code = -1 if warp.flip and warp.flip_vertical else int(warp.flip)
    _ensure_written(cv2.flip(plain, code, dst=out), out)


def _ensure_written(result: np.ndarray, out: np.ndarray) -> None:
    # cv2 writes to dst where it can, and returns a new array where it cannot.
    if result is not out:
        np.copyto(out, result)
