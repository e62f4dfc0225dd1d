"""Crop, zoom-out, flip and resize as one affine warp; colour changes as one 3x4 matrix.

A *view* is the rectangle of the source, in its pixels, that becomes the square input; it may reach
beyond the image (zoom-out). The same numbers move the boxes. All draws come from the generator
given, which the loader makes from (seed, epoch, sample).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.config import DataConfig
from pipeline.data.decode import ImageError
from pipeline.data.resize import reduce, stretch

FILL = (124, 116, 104)  # ImageNet's mean colour, as SSD fills its canvas
CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIALS = 50
LUMA = np.array([0.299, 0.587, 0.114])


class Plan(NamedTuple):
    """What is done to one image."""

    view: tuple[float, float, float, float]  # x1, y1, x2, y2 in source pixels
    flip: bool
    colour: np.ndarray | None  # (3,4) or None


def draw_plan(
    rng: np.random.Generator, config: DataConfig, width: int, height: int, boxes: np.ndarray
) -> Plan:
    """Draw the augmentation of an image; ``boxes`` (M,4) are its objects in source pixels."""
    view = (0.0, 0.0, float(width), float(height))
    if rng.random() < config.zoom_out:
        view = _zoom_out(rng, view, config.zoom_out_max)
    if rng.random() < config.crop:
        view = _crop(rng, view, boxes)
    flip = bool(rng.random() < config.flip)
    colour = _colour(rng) if rng.random() < config.photometric else None
    return Plan(view, flip, colour)


def decoded_scale(image: np.ndarray, width: int, height: int) -> float:
    """The k/8 at which an image (H,W,3) was decoded. Raises ImageError if it fits none."""
    # A reduced JPEG's size is rounded up, so H / height may be larger than the scale.
    for k in range(8, 0, -1):
        if image.shape[:2] == (-(-height * k // 8), -(-width * k // 8)):
            return k / 8
    raise ImageError(f"the picture is not of the size {width}x{height} that its JSON says")


def decode_size(plan: Plan, width: int, height: int, size: int) -> tuple[int, int]:
    """Smallest (width, height) of the decoded image that loses nothing in the plan's view."""
    x1, y1, x2, y2 = plan.view
    return (
        min(width, math.ceil(size * width / (x2 - x1))),
        min(height, math.ceil(size * height / (y2 - y1))),
    )


def warp(image: np.ndarray, plan: Plan, width: int, height: int, size: int) -> np.ndarray:
    """The input (size,size,3) of an image (H,W,3) decoded from a source of width x height."""
    if image.shape[:2] == (height, width) and plan.view == (0, 0, width, height):
        out = stretch(image, size)  # the same map, in a third of the time
        out = cv2.flip(out, 1) if plan.flip else out
    else:
        out = _warp_view(image, plan, width, height, size)
    return out if plan.colour is None else cv2.transform(out, plan.colour)


def _warp_view(image: np.ndarray, plan: Plan, width: int, height: int, size: int) -> np.ndarray:
    """(size,size,3): what of an image lies in the plan's view."""
    scale = decoded_scale(image, width, height)
    x1, y1, x2, y2 = plan.view
    small = reduce(image, (x2 - x1) * scale / size, (y2 - y1) * scale / size)
    scale_x = scale * small.shape[1] / image.shape[1]
    scale_y = scale * small.shape[0] / image.shape[0]
    zoomed_out = x1 < 0 or y1 < 0 or x2 > width or y2 > height
    return cv2.warpAffine(
        small,
        _pixel_matrix(view_matrix(plan, size), scale_x, scale_y),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if zoomed_out else cv2.BORDER_REPLICATE,
        borderValue=FILL,
    )


def view_matrix(plan: Plan, size: int) -> np.ndarray:
    """(2,3) from source pixels to input pixels; both count from the corner of the first pixel."""
    x1, y1, x2, y2 = plan.view
    a, b = size / (x2 - x1), size / (y2 - y1)
    if plan.flip:
        return np.array([[-a, 0.0, a * x2], [0.0, b, -b * y1]])
    return np.array([[a, 0.0, -a * x1], [0.0, b, -b * y1]])


def move_boxes(
    boxes: np.ndarray, plan: Plan, size: int, *, centre_inside: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (M,4) into input pixels, clipped: (K,4) and the mask (M,) of the K that remain.

    A box remains if some of it is inside and, with ``centre_inside``, its centre is in the view.
    """
    if not len(boxes):
        return np.zeros((0, 4), np.float32), np.zeros(0, bool)
    (a, _, c), (_, b, d) = view_matrix(plan, size)
    moved = boxes * (a, b, a, b) + (c, d, c, d)
    if plan.flip:
        moved = moved[:, [2, 1, 0, 3]]
    clipped = np.minimum(np.maximum(moved, 0), size)
    keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    if centre_inside:
        x, y = moved[:, 0] + moved[:, 2], moved[:, 1] + moved[:, 3]
        keep &= (x >= 0) & (x <= 2 * size) & (y >= 0) & (y <= 2 * size)
    return clipped[keep].astype(np.float32), keep


def _pixel_matrix(matrix: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """The same map between pixel centres, as cv2 counts them, of an image decoded at a scale."""
    out = matrix.copy()
    out[0, 0] /= scale_x
    out[1, 1] /= scale_y
    out[0, 2] += 0.5 * out[0, 0] - 0.5
    out[1, 2] += 0.5 * out[1, 1] - 0.5
    return out


def _zoom_out(
    rng: np.random.Generator, view: tuple[float, float, float, float], largest: float
) -> tuple[float, float, float, float]:
    """A canvas of 1 to ``largest`` image sides with the image somewhere on it."""
    width, height = view[2], view[3]
    ratio = 1 + rng.random() * (largest - 1)
    x1 = -rng.random() * width * (ratio - 1)
    y1 = -rng.random() * height * (ratio - 1)
    return x1, y1, x1 + width * ratio, y1 + height * ratio


def _crop(
    rng: np.random.Generator, view: tuple[float, float, float, float], boxes: np.ndarray
) -> tuple[float, float, float, float]:
    """SSD's crop: some object overlaps it by a drawn IoU, and some object's centre is inside."""
    least = CROP_IOUS[int(rng.random() * len(CROP_IOUS))]
    draws = rng.random((CROP_TRIALS, 4))
    sides = 0.3 + 0.7 * draws[:, :2]
    x1, y1, x2, y2 = view
    span = np.array([x2 - x1, y2 - y1])
    low = np.array([x1, y1]) + draws[:, 2:] * span * (1 - sides)
    crops = np.concatenate([low, low + sides * span], 1)
    aspect = sides[:, 0] / sides[:, 1]
    good = (aspect > 0.5) & (aspect < 2)
    if len(boxes):
        inside = _centres_inside(crops, boxes)
        good &= ((_iou(crops, boxes) >= least) & inside).any(1)
    if not good.any():
        return view
    return tuple(crops[int(good.argmax())].tolist())


def _centres_inside(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T,M) whether the centre of each box lies in each crop (T,4)."""
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(2)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(T,M) intersection over union of (T,4) and (M,4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return both / (area_a[:, None] + area_b[None] - both)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """(3,4): contrast, saturation, hue and brightness, each changed half of the time."""
    on = rng.random(4) < 0.5
    amount = rng.random(4) * 2 - 1
    brightness, contrast, saturation, hue = np.where(on, amount, 0.0)
    grey = np.ones((3, 1)) * LUMA
    mix = (1 + 0.5 * saturation) * np.eye(3) - 0.5 * saturation * grey
    matrix = (1 + 0.5 * contrast) * _turn_hue(math.radians(18 * hue)) @ mix
    offset = 32 * brightness - 64 * contrast  # contrast turns about mid-grey, 128
    return np.concatenate([matrix, np.full((3, 1), offset)], 1).astype(np.float32)


def _turn_hue(angle: float) -> np.ndarray:
    """(3,3) rotation of RGB about the grey diagonal (Rodrigues)."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cos * np.eye(3) + (1 - cos) / 3 * np.ones((3, 3)) + sin * cross
