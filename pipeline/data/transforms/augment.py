"""What is done to one image: crop, zoom-out, flips and fit as one view, colour as one matrix.

A *view* is the rectangle of the source, in its pixels, that becomes the input; it may reach beyond
the image (zoom-out). The same numbers move the boxes. All draws come from the generator given,
which the loader makes from (seed, epoch, sample).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.config import DataConfig
from pipeline.data.transforms.decode import ImageError
from pipeline.data.transforms.resize import View, Warp, fit_view, view_map, warp_view

CROP_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_TRIALS = 50
LUMA = np.array([0.299, 0.587, 0.114])


class Plan(NamedTuple):
    """What is done to one image."""

    view: View  # x1, y1, x2, y2 in source pixels
    flip: bool  # left and right
    colour: np.ndarray | None = None  # (3,4)
    flip_vertical: bool = False


def draw_plan(
    rng: np.random.Generator,
    config: DataConfig,
    width: int,
    height: int,
    boxes: Callable[[], np.ndarray],
) -> Plan:
    """Draw the augmentation of an image; ``boxes()`` (M,4) are its objects in source pixels."""
    view = (0.0, 0.0, float(width), float(height))
    if rng.random() < config.zoom_out:
        view = _zoom_out(rng, view, config.zoom_out_max)
    if rng.random() < config.crop:
        view = _crop(rng, view, boxes())
    flip = bool(rng.random() < config.flip)
    colour = _colour(rng) if rng.random() < config.photometric else None
    flip_vertical = bool(rng.random() < config.flip_vertical)
    return Plan(view, flip, colour, flip_vertical)


def fitted(plan: Plan, width: int, height: int, fit: str) -> Plan:
    """The plan with its view enlarged to the aspect of a width x height output, if so wished."""
    return (
        plan if fit == "stretch" else plan._replace(view=fit_view(plan.view, width / height, fit))
    )


def decoded_scale(image: np.ndarray, width: int, height: int) -> float:
    """The k/8 at which an image (H,W,3) was decoded. Raises ImageError if it fits none."""
    # A reduced JPEG's size is rounded up, so H / height may be larger than the scale.
    for k in range(8, 0, -1):
        if image.shape[:2] == (-(-height * k // 8), -(-width * k // 8)):
            return k / 8
    raise ImageError(f"the picture is not of the size {width}x{height} that its JSON says")


def decode_size(plan: Plan, source: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    """Smallest (width, height) of the decoded source that loses nothing in the plan's view."""
    x1, y1, x2, y2 = plan.view
    width, height = source
    return (
        min(width, math.ceil(output[0] * width / (x2 - x1))),
        min(height, math.ceil(output[1] * height / (y2 - y1))),
    )


def warp(image: np.ndarray, plan: Plan, source: tuple[int, int], out: np.ndarray) -> None:
    """Write an image (H,W,3), decoded from a source of (width, height), into ``out`` (h,w,3)."""
    scale = decoded_scale(image, *source)
    warp_view(image, out, Warp(plan.view, scale, plan.flip, plan.flip_vertical), source)
    if plan.colour is not None:
        changed = cv2.transform(out, plan.colour, dst=out)
        if changed is not out:
            np.copyto(out, changed)


class Place(NamedTuple):
    """Where a view lies in the input: the map of its boxes, and the rectangle that clips them."""

    scale_x: float
    shift_x: float
    scale_y: float
    shift_y: float
    left: float
    top: float
    right: float
    bottom: float


def place(plan: Plan, left: int, top: int, width: int, height: int) -> Place:
    """Place of a plan's view in the rectangle of the input that it fills."""
    warped = Warp(plan.view, 1.0, plan.flip, plan.flip_vertical)
    a, c, b, d = view_map(warped, width, height)
    return Place(a, c + left, b, d + top, left, top, left + width, top + height)


def move_boxes(
    boxes: np.ndarray, places: np.ndarray, centre_inside: np.ndarray | bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (M,4) into input pixels, clipped: (M,4) float32 and the mask (M,) of what remains.

    ``places`` holds one `Place` (8,1), or one a box (8,M), in columns. A box remains if some of it
    is inside and, where ``centre_inside``, its centre is in the view.
    """
    # Along rows of M numbers, as NumPy takes its time over each row of two.
    scale, shift, low_limit, high_limit = places[0:4:2], places[1:4:2], places[4:6], places[6:8]
    first, second = boxes.T.reshape(2, 2, -1) * scale + shift
    low, high = np.minimum(first, second), np.maximum(first, second)  # a flip swaps them
    clipped = np.concatenate([np.maximum(low, low_limit), np.minimum(high, high_limit)])
    centre = (low + high) / 2
    (keep_x, keep_y), (in_x, in_y) = (
        clipped[2:] > clipped[:2],
        (centre >= low_limit) & (centre <= high_limit),
    )
    keep = keep_x & keep_y & (in_x & in_y | np.logical_not(centre_inside))
    return np.ascontiguousarray(clipped.T, np.float32), keep


def _zoom_out(rng: np.random.Generator, view: View, largest: float) -> View:
    """A canvas of 1 to ``largest`` image sides with the image somewhere on it."""
    width, height = view[2], view[3]
    ratio = 1 + rng.random() * (largest - 1)
    x1 = -rng.random() * width * (ratio - 1)
    y1 = -rng.random() * height * (ratio - 1)
    return x1, y1, x1 + width * ratio, y1 + height * ratio


def _crop(rng: np.random.Generator, view: View, boxes: np.ndarray) -> View:
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
