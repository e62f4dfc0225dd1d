"""Augmentation as the code of Mutual Guidance has it: colour, crop, zoom-out, flip, in this order.

It differs from `augment`: the crop has a bound for all objects and modes that are redrawn, the
canvas of the zoom-out surrounds the crop and has another aspect ratio, and one of five
interpolations is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.config import DataConfig
from pipeline.data.transforms.augment import (
    LUMA,
    AugmentParams,
    centres_inside,
    draw_affine,
    hue_rotation,
    iou,
)
from pipeline.data.transforms.boxes import affine_box_map, move_affine
from pipeline.data.transforms.resize import View

# Bounds for the IoU of a crop with every object; None: the whole image, -1: no bound.
CROP_MODES = (None, 0.1, 0.3, 0.5, 0.7, 0.9, -1.0)
TRIALS = 50
MIN_SIDE = 0.01  # of the input; objects with a smaller side are dropped
MAX_HUE = 36.0  # degrees
INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_CUBIC,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_LANCZOS4,
)


def draw_published(
    rng: np.random.Generator,
    config: DataConfig,
    width: int,
    height: int,
    boxes: Callable[[], np.ndarray],
) -> AugmentParams:
    """Draw the augmentation of an image; ``boxes()`` (M,4) are its objects in source pixels.

    An image whose objects would all be dropped stays as it is.
    """
    whole = (0.0, 0.0, float(width), float(height))
    colour = _colour_matrix(rng) if rng.random() < config.photometric else None
    objects = boxes()
    view = crop = whole
    if rng.random() < config.crop and len(objects):
        view = crop = _crop(rng, whole, objects)
    if rng.random() < config.zoom_out:
        view = _zoom_out(rng, crop, config.zoom_out_max)
    interpolation = INTERPOLATIONS[int(rng.random() * len(INTERPOLATIONS))]
    flip = bool(rng.random() < config.flip)
    flip_vertical = bool(rng.random() < config.flip_vertical)
    if len(objects) and not _large_enough(objects, crop, view).any():
        return AugmentParams(whole, False)
    visible = crop if view != crop else None
    params = AugmentParams(view, flip, colour, flip_vertical, visible, interpolation, MIN_SIDE)
    return _add_affine(rng, config, params, objects)


def _add_affine(
    rng: np.random.Generator, config: DataConfig, params: AugmentParams, boxes: np.ndarray
) -> AugmentParams:
    """Draw rotation, scale and shear, which are left out if they would drop all boxes (M,4)."""
    affine = draw_affine(rng, config, params.view)
    if affine is None:
        return params
    moved = params._replace(affine=affine)
    maps = np.array([affine_box_map(moved, 0, 0, 1, 1)]).T  # (15,1)
    return moved if not len(boxes) or move_affine(boxes, maps)[1].any() else params


def _crop(rng: np.random.Generator, whole: View, boxes: np.ndarray) -> View:
    """Draw a mode, and trials of a rectangle, until one keeps to the bound of its mode.

    Every object overlaps the rectangle by the IoU of the mode, and the centre of one is inside.
    """
    width, height = whole[2:]
    while True:  # one in seven modes is the whole image
        min_iou = CROP_MODES[int(rng.random() * len(CROP_MODES))]
        if min_iou is None:
            return whole
        # Rectangles of random sides, aspect ratios and positions.
        draws = rng.random((TRIALS, 4))  # (T,4)
        scale = 0.3 + 0.7 * draws[:, 0]  # (T,)
        low = np.maximum(0.5, scale**2)
        ratio = np.sqrt(low + draws[:, 1] * (np.minimum(2.0, scale**-2.0) - low))  # (T,)
        sides = np.stack([scale * ratio * width, scale / ratio * height], 1)  # (T,2)
        corner = draws[:, 2:] * (np.array([width, height]) - sides)  # (T,2)
        crops = np.concatenate([corner, corner + sides], 1)  # (T,4)
        # The first one that meets both conditions.
        good = iou(crops, boxes).min(1) >= min_iou  # (T,)
        good &= centres_inside(crops, boxes).any(1)
        if good.any():
            x1, y1, x2, y2 = crops[int(good.argmax())].tolist()
            return x1, y1, x2, y2


def _zoom_out(rng: np.random.Generator, crop: View, max_ratio: float) -> View:
    """Draw a canvas around the crop, of 1 to ``max_ratio`` of its sides, of any aspect ratio."""
    draws = rng.random((TRIALS, 2))  # (T,2)
    scale = 1 + draws[:, 0] * (max_ratio - 1)  # (T,)
    low = np.maximum(0.5, scale**-2.0)
    ratio = np.sqrt(low + draws[:, 1] * (np.minimum(2.0, scale**2) - low))  # (T,)
    sides = np.stack([scale * ratio, scale / ratio], 1)  # (T,2) in sides of the crop
    fits = (sides >= 1).all(1)  # (T,)
    by_x, by_y = sides[int(fits.argmax())].tolist() if fits.any() else (1.0, 1.0)
    x1, y1, x2, y2 = crop
    width, height = x2 - x1, y2 - y1
    left = x1 - rng.random() * width * (by_x - 1)
    top = y1 - rng.random() * height * (by_y - 1)
    return left, top, left + width * by_x, top + height * by_y


def _large_enough(boxes: np.ndarray, crop: View, view: View) -> np.ndarray:
    """Return which boxes (M,4) remain in the input, (M,)."""
    low, high = np.array(crop[:2]), np.array(crop[2:])  # (2,) each
    span = np.array([view[2] - view[0], view[3] - view[1]])  # (2,)
    sides = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)  # (M,2)
    inside = centres_inside(np.array([crop]), boxes)[0]  # (M,)
    return inside & ((sides / span).min(1) > MIN_SIDE)


def _colour_matrix(rng: np.random.Generator) -> np.ndarray:
    """Draw a matrix (3,4): brightness, contrast about 0, saturation, hue, each half the time."""
    on = rng.random(4) < 0.5
    amount = rng.random(4) * 2 - 1
    brightness, contrast, saturation, hue = np.where(on, amount, 0.0)
    grey = np.ones((3, 1)) * LUMA  # (3,3)
    mix = (1 + 0.5 * saturation) * np.eye(3) - 0.5 * saturation * grey  # (3,3)
    gain = 1 + 0.5 * contrast
    matrix = gain * mix @ hue_rotation(math.radians(MAX_HUE * hue))  # (3,3)
    offset = np.full((3, 1), 32 * brightness * gain)
    return np.concatenate([matrix, offset], 1).astype(np.float32)  # (3,4)
