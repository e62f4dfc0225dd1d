"""IoU of objects with all anchors or with some, in a layout that a CPU streams through.

Equal to `box_iou`, with three passes over memory fewer, and for anchors picked object by object.
"""

from typing import NamedTuple

import torch
from torch import Tensor

AnchorIndex = slice | Tensor
"""A range of n anchors, the same for all objects, or their indices (B, M, n)."""


class Corners(NamedTuple):
    """Coordinates and areas of boxes, one tensor each, of shapes that broadcast to (B, M, A)."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor

    def select(self, anchors: AnchorIndex) -> "Corners":
        """Return the boxes of some anchors: (..., n) for a range, (B, M, n) for indices."""
        if isinstance(anchors, slice):
            return Corners(*(x[..., anchors] for x in self))  # (..., n)
        batch, objects, _ = anchors.shape
        return Corners(*(x.expand(batch, objects, -1).gather(2, anchors) for x in self))


def box_corners(boxes: Tensor) -> Corners:
    """Return corners (B, 1, A) of boxes (B, A, 4), B may be 1. Inverted ones are empty."""
    x1, y1, x2, y2 = boxes.transpose(1, 2).contiguous().unsqueeze(2).unbind(1)  # (B, 1, A) each
    return Corners(x1, y1, x2, y2, (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0))


def object_corners(boxes: Tensor) -> Corners:
    """Return corners (B, M, 1) of objects (B, M, 4). Inverted ones are empty."""
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(2)  # (B, M, 1) each
    x2, y2 = torch.maximum(x1, x2), torch.maximum(y1, y2)
    # The area of an empty object is tiny but not 0, so the division by the union is safe.
    area = ((x2 - x1) * (y2 - y1)).clamp(min=torch.finfo(boxes.dtype).tiny)
    return Corners(x1, y1, x2, y2, area)


def pairwise_iou(objects: Corners, boxes: Corners) -> Tensor:
    """Return the IoU (B, M, n) of objects (B, M, 1), boxes (., ., n), in newly allocated memory."""
    # Intersection: both edges of the object, clamped to the box, are its edges.
    width = torch.clamp(objects.x2, boxes.x1, boxes.x2)  # (B, M, n)
    width.sub_(torch.clamp(objects.x1, boxes.x1, boxes.x2))
    height = torch.clamp(objects.y2, boxes.y1, boxes.y2)  # (B, M, n)
    height.sub_(torch.clamp(objects.y1, boxes.y1, boxes.y2))
    intersection = width.mul_(height)
    # Divided by the union.
    return intersection.div_((objects.area + boxes.area).sub_(intersection))


def centre_near(objects: Corners, boxes: Corners, reach: Tensor) -> Tensor:
    """Return whether the centre of a box is inside an object, (B, M, n), or near its centre.

    Each side of the object counts as at least twice the `reach` (n,) of the box.
    """
    # Of coordinates: twice the distance of the centres against the side.
    x = (boxes.x1 + boxes.x2 - (objects.x1 + objects.x2)).abs_()  # (B, M, n)
    near = x < torch.maximum(objects.x2 - objects.x1, 2 * reach)
    y = (boxes.y1 + boxes.y2 - (objects.y1 + objects.y2)).abs_()  # (B, M, n)
    return near.logical_and_(y < torch.maximum(objects.y2 - objects.y1, 2 * reach))


def centre_inside(objects: Corners, boxes: Corners) -> Tensor:
    """Return whether the centre of a box is strictly inside an object, (B, M, n)."""
    x, y = (boxes.x1 + boxes.x2) / 2, (boxes.y1 + boxes.y2) / 2  # (., ., n)
    return (x > objects.x1) & (x < objects.x2) & (y > objects.y1) & (y < objects.y2)  # (B, M, n)
