"""IoU between objects and any choice of boxes, laid out so that a CPU streams through it.

`box_iou` says the same; this one takes three passes fewer, and boxes that are picked object by
object.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Where = slice | Tensor
"""Which anchors: a range of them, the same for all objects, or indices (B, M, k)."""


class Corners(NamedTuple):
    """Coordinates and areas of boxes, one tensor each, of shapes that broadcast to (B, M, A)."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor

    def at(self, where: Where) -> "Corners":
        """The chosen boxes of the last dimension: (..., n) for a range, (B, M, k) for indices."""
        if isinstance(where, slice):
            return Corners(*(x[..., where] for x in self))
        batch, objects, _ = where.shape
        return Corners(*(x.expand(batch, objects, -1).gather(2, where) for x in self))


def box_corners(boxes: Tensor) -> Corners:
    """Boxes (B, A, 4) or (1, A, 4) -> corners (B, 1, A) or (1, 1, A). Inverted ones are empty."""
    x1, y1, x2, y2 = boxes.transpose(1, 2).contiguous().unsqueeze(2).unbind(1)
    return Corners(x1, y1, x2, y2, (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0))


def object_corners(boxes: Tensor) -> Corners:
    """Objects (B, M, 4) -> corners (B, M, 1). Inverted ones are empty."""
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(2)
    x2, y2 = torch.maximum(x1, x2), torch.maximum(y1, y2)
    # An empty object's area is not zero, so that no union is and nothing divides by it.
    area = ((x2 - x1) * (y2 - y1)).clamp(min=torch.finfo(boxes.dtype).tiny)
    return Corners(x1, y1, x2, y2, area)


def overlap(objects: Corners, boxes: Corners) -> Tensor:
    """IoU (B, M, n) of objects (B, M, 1) with boxes (., ., n), in memory of its own."""
    # Moving both edges of the object into the box leaves the width of what they share.
    width = torch.clamp(objects.x2, boxes.x1, boxes.x2)
    width.sub_(torch.clamp(objects.x1, boxes.x1, boxes.x2))
    height = torch.clamp(objects.y2, boxes.y1, boxes.y2)
    height.sub_(torch.clamp(objects.y1, boxes.y1, boxes.y2))
    shared = width.mul_(height)
    return shared.div_((objects.area + boxes.area).sub_(shared))


def centre_inside(objects: Corners, boxes: Corners) -> Tensor:
    """(B, M, n) whether a box's centre lies strictly inside an object (B, M, 1)."""
    x, y = (boxes.x1 + boxes.x2) / 2, (boxes.y1 + boxes.y2) / 2
    return (x > objects.x1) & (x < objects.x2) & (y > objects.y1) & (y < objects.y2)
