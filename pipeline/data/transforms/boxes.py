"""Move boxes with the pixels of their image, all boxes of a batch at once.

Without rotation, scale and shear a map is a scale and a shift per axis. With them it is an affine
matrix, and a box becomes the bounds of its moved corners.

Shape letters: M objects.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.data.transforms.augment import AugmentParams, visible_rect
from pipeline.data.transforms.resize import view_map, view_matrix


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
    a, c, b, d = view_map(params.as_warp(), width, height)
    x1, y1, x2, y2 = visible_rect(params, width, height)
    limits = left + x1, top + y1, left + x2, top + y2
    return BoxMap(a, c + left, b, d + top, *limits, params.min_side * min(width, height))


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


class AffineBoxMap(NamedTuple):
    """How boxes move by an affine map, the rectangles that clip them in the source and in the
    input, and the side in pixels below which they are dropped."""

    x_by_x: float
    x_by_y: float
    shift_x: float
    y_by_x: float
    y_by_y: float
    shift_y: float
    source_left: float
    source_top: float
    source_right: float
    source_bottom: float
    left: float
    top: float
    right: float
    bottom: float
    min_side: float


def affine_box_map(
    params: AugmentParams, left: int, top: int, width: int, height: int
) -> AffineBoxMap:
    """Return the map of boxes for a view that is drawn into a rectangle of the input."""
    matrix = view_matrix(params.as_warp(), width, height)  # (2,3)
    matrix[:, 2] += left, top
    visible = params.visible or (-math.inf, -math.inf, math.inf, math.inf)
    limits = left, top, left + width, top + height
    min_side = params.min_side * min(width, height)
    return AffineBoxMap._make((*matrix.ravel().tolist(), *visible, *limits, min_side))


def move_affine(
    boxes: np.ndarray, maps: np.ndarray, centre_inside: np.ndarray | bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes (M,4) by `AffineBoxMap` columns (15,1) or (15,M); the rest is as in `move_boxes`.

    Without rotation and shear the result is that of `move_boxes`.
    """
    corners = boxes.T.reshape(2, 2, -1)  # (2,2,M) first and second x and y

    # The centre, by the box as it is.
    low, high = _moved_bounds(corners, maps)  # (2,M) each
    source_centre, centre = corners.mean(0), (low + high) / 2  # (2,M) each
    inside = (source_centre >= maps[6:8]) & (source_centre <= maps[8:10])  # (2,M)
    inside &= (centre >= maps[10:12]) & (centre <= maps[12:14])

    # What is visible of the source moves, and is clipped to the input.
    visible = np.stack([np.maximum(corners[0], maps[6:8]), np.minimum(corners[1], maps[8:10])])
    low, high = _moved_bounds(visible, maps)  # (2,M) each
    clipped = np.concatenate([np.maximum(low, maps[10:12]), np.minimum(high, maps[12:14])])  # (4,M)

    # Keep boxes with a visible area and, if required, a visible centre.
    area = (visible[1] > visible[0]).all(0) & (clipped[2:] > clipped[:2]).all(0)  # (M,)
    large = (clipped[2:] - clipped[:2] >= maps[14]).all(0)  # (M,)
    keep = area & large & (inside.all(0) | np.logical_not(centre_inside))  # (M,)
    return np.ascontiguousarray(clipped.T, np.float32), keep  # (M,4), (M,)


def _moved_bounds(corners: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the low and high corners (2,M) of the bounds of moved boxes (2,2,M)."""
    by_x, by_y = maps[0:6:3] * corners[:, :1], maps[1:6:3] * corners[:, 1:]  # (2,2,M) each
    shift = maps[2:6:3]  # (2,1|M)
    return by_x.min(0) + by_y.min(0) + shift, by_x.max(0) + by_y.max(0) + shift
