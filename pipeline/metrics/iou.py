"""Intersection over union of boxes, by the code of COCO itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Floats = NDArray[np.float64]


def pairwise_iou(
    detections: Floats, objects: Floats, crowd: NDArray[np.bool_] | None = None
) -> Floats:
    """Return the IoU (D,G) of boxes (D,4) and (G,4), both as x, y, width, height.

    For ``crowd`` regions (G,) the denominator is the area of the detection, as COCO defines.
    """
    if not len(detections) or not len(objects):
        return np.zeros((len(detections), len(objects)))
    regions = np.zeros(len(objects)) if crowd is None else crowd
    iou: Floats = coco_mask.iou(detections, objects, regions.astype(np.uint8).tolist())
    return iou
