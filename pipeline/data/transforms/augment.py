"""Augmentation of one image: geometry as one view of the source, colour as one matrix.

A *view* is the rectangle of the source, in its pixels, that becomes the input. Crop, zoom-out and
fit change the view, flips mirror it; it may extend beyond the image (zoom-out). The same numbers
move the boxes. All draws come from the given generator, which the loader keys by (seed, epoch,
sample).

Shape letters: M objects, T crop trials; H, W image height and width; h, w output height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.config import DataConfig
from pipeline.data.transforms.decode import ImageError
from pipeline.data.transforms.resize import (
    FILL_COLOUR,
    View,
    Warp,
    fit_view,
    view_map,
    warp_view,
)

CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIALS = 50
LUMA = np.array([0.299, 0.587, 0.114])


class AugmentParams(NamedTuple):
    """The augmentation of one image, as drawn."""

    view: View  # x1, y1, x2, y2 in source pixels
    flip: bool  # horizontally
    colour: np.ndarray | None = None  # (3,4)
    flip_vertical: bool = False
    visible: View | None = None  # in source pixels; beyond it is the fill colour
    interpolation: int = cv2.INTER_LINEAR
    min_side: float = 0.0  # of the input; boxes with a smaller one are dropped


def draw_params(
    rng: np.random.Generator,
    config: DataConfig,
    width: int,
    height: int,
    boxes: Callable[[], np.ndarray],
) -> AugmentParams:
    """Draw the augmentation of an image; ``boxes()`` (M,4) are its objects in source pixels."""
    view = (0.0, 0.0, float(width), float(height))
    if rng.random() < config.zoom_out:
        view = _zoom_out(rng, view, config.zoom_out_max)
    if rng.random() < config.crop:
        view = _crop(rng, view, boxes())
    flip = bool(rng.random() < config.flip)
    colour = _colour_matrix(rng) if rng.random() < config.photometric else None
    flip_vertical = bool(rng.random() < config.flip_vertical)
    return AugmentParams(view, flip, colour, flip_vertical)


def fit_params(params: AugmentParams, width: int, height: int, fit: str) -> AugmentParams:
    """Return the parameters with their view fitted to a width x height output."""
    if fit == "stretch":
        return params
    return params._replace(view=fit_view(params.view, width / height, fit))


def decoded_scale(image: np.ndarray, width: int, height: int) -> float:
    """Return the scale k/8 at which an image (H,W,3) was decoded.

    Raises ImageError if its size fits none of these scales.
    """
    # The size of a reduced JPEG is rounded up, so H / height may exceed the scale.
    for k in range(8, 0, -1):
        if image.shape[:2] == (-(-height * k // 8), -(-width * k // 8)):
            return k / 8
    raise ImageError(f"the image is not {width}x{height} as its JSON says")


def decode_size(
    params: AugmentParams, source: tuple[int, int], output: tuple[int, int]
) -> tuple[int, int]:
    """Return the smallest (width, height) of the decoded source that loses nothing in the view."""
    x1, y1, x2, y2 = params.view
    width, height = source
    return (
        min(width, math.ceil(output[0] * width / (x2 - x1))),
        min(height, math.ceil(output[1] * height / (y2 - y1))),
    )


def warp(
    image: np.ndarray, params: AugmentParams, source: tuple[int, int], out: np.ndarray
) -> None:
    """Write the augmented image (H,W,3), of a (width, height) source, to ``out`` (h,w,3).

    Raises ImageError if the image was not decoded from a source of this size.
    """
    scale = decoded_scale(image, *source)
    view = Warp(params.view, scale, params.flip, params.flip_vertical, params.interpolation)
    warp_view(image, out, view, source)
    if params.colour is not None:
        changed = cv2.transform(out, params.colour, dst=out)  # (h,w,3)
        if changed is not out:
            np.copyto(out, changed)
    if params.visible is not None:
        height, width = out.shape[:2]
        x1, y1, x2, y2 = (round(side) for side in _visible_rect(params, width, height))
        out[:y1], out[y2:], out[:, :x1], out[:, x2:] = (FILL_COLOUR,) * 4


class BoxMap(NamedTuple):
    """How boxes move from the source to the input, the rectangle that clips them there, and the
    side in pixels below which they are dropped."""

    scale_x: float
    shift_x: float
    scale_y: float
    shift_y: float
    left: float
    top: float
    right: float
    bottom: float
    min_side: float


def box_map(params: AugmentParams, left: int, top: int, width: int, height: int) -> BoxMap:
    """Return the map of boxes for a view that is drawn into a rectangle of the input."""
    warped = Warp(params.view, 1.0, params.flip, params.flip_vertical)
    a, c, b, d = view_map(warped, width, height)
    x1, y1, x2, y2 = _visible_rect(params, width, height)
    limits = left + x1, top + y1, left + x2, top + y2
    return BoxMap(a, c + left, b, d + top, *limits, params.min_side * min(width, height))


def _visible_rect(params: AugmentParams, width: int, height: int) -> View:
    """Return the visible rectangle in pixels of a width x height output."""
    if params.visible is None:
        return 0.0, 0.0, float(width), float(height)
    warped = Warp(params.view, 1.0, params.flip, params.flip_vertical)
    a, c, b, d = view_map(warped, width, height)
    x1, y1, x2, y2 = params.visible
    (left, right), (top, bottom) = (
        sorted((a * x1 + c, a * x2 + c)),
        sorted((b * y1 + d, b * y2 + d)),
    )
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


def move_boxes(
    boxes: np.ndarray, maps: np.ndarray, centre_inside: np.ndarray | bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes (M,4) to input pixels and clip them.

    ``maps`` has a `BoxMap` per column: one for all boxes (9,1) or one per box (9,M). Returns the
    boxes (M,4) float32 and the mask (M,) of those that remain: some area is visible, both sides are
    long enough and, where ``centre_inside`` is set, the centre is visible too.
    """
    # Work along rows of M numbers: NumPy is slow on rows of two.
    scale, shift, low_limit, high_limit = maps[0:4:2], maps[1:4:2], maps[4:6], maps[6:8]  # (2,1|M)
    first, second = boxes.T.reshape(2, 2, -1) * scale + shift  # (2,M) each

    # Corners in order (a flip swaps them), and clipped.
    low, high = np.minimum(first, second), np.maximum(first, second)  # (2,M)
    clipped = np.concatenate([np.maximum(low, low_limit), np.minimum(high, high_limit)])  # (4,M)

    # Keep boxes with a visible area and, if required, a visible centre.
    centre = (low + high) / 2  # (2,M)
    keep_x, keep_y = clipped[2:] > clipped[:2]  # (M,) each
    large = (clipped[2:] - clipped[:2] >= maps[8]).all(0)  # (M,)
    in_x, in_y = (centre >= low_limit) & (centre <= high_limit)  # (M,) each
    keep = large & keep_x & keep_y & (in_x & in_y | np.logical_not(centre_inside))  # (M,)
    return np.ascontiguousarray(clipped.T, np.float32), keep  # (M,4), (M,)


def _zoom_out(rng: np.random.Generator, view: View, max_ratio: float) -> View:
    """Draw a canvas of 1 to ``max_ratio`` image sides, with the image at a random position."""
    width, height = view[2], view[3]
    ratio = 1 + rng.random() * (max_ratio - 1)
    x1 = -rng.random() * width * (ratio - 1)
    y1 = -rng.random() * height * (ratio - 1)
    return x1, y1, x1 + width * ratio, y1 + height * ratio


def _crop(rng: np.random.Generator, view: View, boxes: np.ndarray) -> View:
    """Draw SSD's crop: one object has its centre inside and overlaps it by at least a drawn IoU.

    Returns the whole view if none of the trials qualifies.
    """
    min_iou = CROP_IOUS[int(rng.random() * len(CROP_IOUS))]

    # Rectangles of random sides and positions within the view.
    draws = rng.random((CROP_TRIALS, 4))  # (T,4)
    sides = 0.3 + 0.7 * draws[:, :2]  # (T,2) as fractions of the view
    x1, y1, x2, y2 = view
    span = np.array([x2 - x1, y2 - y1])  # (2,)
    low = np.array([x1, y1]) + draws[:, 2:] * span * (1 - sides)  # (T,2)
    crops = np.concatenate([low, low + sides * span], 1)  # (T,4)

    # The first one that meets all conditions.
    aspect = sides[:, 0] / sides[:, 1]  # (T,)
    good = (aspect > 0.5) & (aspect < 2)  # (T,)
    if len(boxes):
        inside = centres_inside(crops, boxes)  # (T,M)
        good &= ((iou(crops, boxes) >= min_iou) & inside).any(1)  # (T,)
    if not good.any():
        return view
    return tuple(crops[int(good.argmax())].tolist())


def centres_inside(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return (T,M) whether the centre of each box (M,4) is inside each crop (T,4)."""
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]  # (1,M,2)
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(2)  # (T,M)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (T,M) of boxes (T,4) and (M,4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (T,M,2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (T,M,2)
    both = (high - low).clip(0).prod(2)  # (T,M)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)  # (T,), (M,)
    return both / (area_a[:, None] + area_b[None] - both)  # (T,M)


def _colour_matrix(rng: np.random.Generator) -> np.ndarray:
    """Draw a matrix (3,4): contrast, saturation, hue and brightness, each changed half the time."""
    on = rng.random(4) < 0.5
    amount = rng.random(4) * 2 - 1
    brightness, contrast, saturation, hue = np.where(on, amount, 0.0)
    grey = np.ones((3, 1)) * LUMA  # (3,3)
    mix = (1 + 0.5 * saturation) * np.eye(3) - 0.5 * saturation * grey  # (3,3)
    matrix = (1 + 0.5 * contrast) * hue_rotation(math.radians(18 * hue)) @ mix  # (3,3)
    offset = 32 * brightness - 64 * contrast  # contrast pivots on mid-grey, 128
    return np.concatenate([matrix, np.full((3, 1), offset)], 1).astype(np.float32)  # (3,4)


def hue_rotation(angle: float) -> np.ndarray:
    """Return the rotation (3,3) of RGB about the grey diagonal (Rodrigues)."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])  # (3,3)
    return cos * np.eye(3) + (1 - cos) / 3 * np.ones((3, 3)) + sin * cross  # (3,3)
