"""Pixels of any size to the network's square input, by stretching.

Evaluation and prediction call ``to_input``; training warps with the same geometry and the same
area average before strong reduction, so that all three see alike pixels.
Stands alone (no imports from this project), so that a registered model can carry it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np


def to_input(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch (H,W,3) uint8 to (3,size,size). Boxes go back by the factors (W/size, H/size)."""
    return np.stack(cv2.split(stretch(image, size)))


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch (H,W,3) uint8 to (size,size,3)."""
    height, width = image.shape[:2]
    image = reduce(image, width / size, height / size)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


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
