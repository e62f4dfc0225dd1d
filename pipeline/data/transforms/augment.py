"""Augmentation of one image: geometry as one view of the source, colour as one matrix.

A *view* is the rectangle of the source, in its pixels, that becomes the input. Crop, zoom-out and
fit change the view, flips mirror it; it may extend beyond the image (zoom-out). Rotation, scale and
shear are one affine map of the source behind the view. The same numbers move the boxes. All draws
come from the given generator, which the loader keys by (seed, epoch, sample).

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
    source_pixels,
    view_map,
    view_matrix,
    warp_view,
)

CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIALS = 50
FRACTION_BITS = 4  # of the coordinates of polygons
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
    affine: np.ndarray | None = None  # (2,3) that moves source pixels behind the view

    def as_warp(self, scale: float = 1.0) -> Warp:
        """Return the map of a source that was decoded at a scale."""
        return Warp(
            self.view, scale, self.flip, self.flip_vertical, self.interpolation, self.affine
        )


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
    affine = draw_affine(rng, config, view)
    return AugmentParams(view, flip, colour, flip_vertical, affine=affine)


def draw_affine(rng: np.random.Generator, config: DataConfig, view: View) -> np.ndarray | None:
    """Draw rotation, scale and shear (2,3) about the centre of a view; None if all are off."""
    if not config.affine:
        return None
    # Always four draws: one option does not change the draws of another.
    turn, size, across, down = (2 * rng.random(4) - 1).tolist()
    angle, factor = math.radians(config.rotate * turn), 1 + config.scale * size
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    across, down = (math.tan(math.radians(config.shear * amount)) for amount in (across, down))
    # Rotation and scale, then shear, about the centre of the view.
    a, b, c, d = cos + across * sin, across * cos - sin, down * cos + sin, cos - down * sin
    x, y = (view[0] + view[2]) / 2, (view[1] + view[3]) / 2
    return np.array(((a, b, x - a * x - b * y), (c, d, y - c * x - d * y)))  # (2,3)


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
    width, height = source
    across, down = source_pixels(params.as_warp(), *output)
    return (
        min(width, math.ceil(output[0] * width / across)),
        min(height, math.ceil(output[1] * height / down)),
    )


def warp(
    image: np.ndarray, params: AugmentParams, source: tuple[int, int], out: np.ndarray
) -> None:
    """Write the augmented image (H,W,3), of a (width, height) source, to ``out`` (h,w,3).

    Raises ImageError if the image was not decoded from a source of this size.
    """
    warp_view(image, out, params.as_warp(decoded_scale(image, *source)), source)
    if params.colour is not None:
        changed = cv2.transform(out, params.colour, dst=out)  # (h,w,3)
        if changed is not out:
            np.copyto(out, changed)
    if params.visible is not None:
        _fill_beyond(params, out)


def _fill_beyond(params: AugmentParams, out: np.ndarray) -> None:
    """Fill what is beyond the visible rectangle of the source, in ``out`` (h,w,3)."""
    height, width = out.shape[:2]
    if params.affine is None:
        x1, y1, x2, y2 = (round(side) for side in visible_rect(params, width, height))
        out[:y1], out[y2:], out[:, :x1], out[:, x2:] = (FILL_COLOUR,) * 4
        return
    # Between the whole output and the moved rectangle.
    assert params.visible is not None
    left, top, right, bottom = params.visible
    corners = np.array(
        ((left, right, right, left), (top, top, bottom, bottom), (1.0, 1.0, 1.0, 1.0))
    )  # (3,4)
    inner = (view_matrix(params.as_warp(), width, height) @ corners).T - 0.5  # (4,2)
    low, high = np.minimum(inner.min(0), 0) - 2, np.maximum(inner.max(0), (width, height)) + 2
    outer = np.array(((low[0], low[1]), (high[0], low[1]), high, (low[0], high[1])))  # (4,2)
    ends = [np.rint(polygon * 2**FRACTION_BITS).astype(np.int32) for polygon in (outer, inner)]
    filled = cv2.fillPoly(out, ends, FILL_COLOUR, shift=FRACTION_BITS)
    if filled is not out:
        np.copyto(out, filled)


def visible_rect(params: AugmentParams, width: int, height: int) -> View:
    """Return the visible rectangle in pixels of a width x height output."""
    if params.visible is None:
        return 0.0, 0.0, float(width), float(height)
    a, c, b, d = view_map(params.as_warp(), width, height)
    x1, y1, x2, y2 = params.visible
    (left, right), (top, bottom) = (
        sorted((a * x1 + c, a * x2 + c)),
        sorted((b * y1 + d, b * y2 + d)),
    )
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


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
