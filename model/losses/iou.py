"""Losses of whole boxes by how they overlap: GIoU and SIoU."""

import torch
from torch import Tensor

# Keeps divisions and their gradients finite for empty boxes; in pixels (squared) it is nothing.
EPSILON = 1e-9


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., 2019): (..., 4), (..., 4) -> (...), between 0 and 2."""
    iou, union = _iou(boxes, targets)
    width, height = _hull(boxes, targets)
    hull = width * height
    return 1 - iou + (hull - union) / (hull + EPSILON)


def siou(boxes: Tensor, targets: Tensor, theta: float = 4.0) -> Tensor:
    """SIoU (Gevorgyan, 2022): (..., 4), (..., 4) -> (...).

    1 - IoU, plus half of what distance of the centres and difference of shape cost. Distance costs
    the more the less the centres are aligned along an axis.
    """
    iou, _ = _iou(boxes, targets)
    width, height = _hull(boxes, targets)
    shift = (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / 2
    shift_x, shift_y = shift.unbind(-1)
    # sin(2 x angle), from its sine and cosine: no arcsine, whose gradient is infinite at the axes.
    squared = shift_x.square() + shift_y.square()
    angle = 2 * (shift_x * shift_y).abs() / (squared + EPSILON**2)
    gamma = 2 - angle
    distance = sum(
        1 - torch.exp(-gamma * (d / (side + EPSILON)).square())
        for d, side in ((shift_x, width), (shift_y, height))
    )
    sizes = (boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2])
    difference = (sizes[0] - sizes[1]).abs() / (torch.maximum(*sizes) + EPSILON)
    shape = ((1 - torch.exp(-difference)) ** theta).sum(-1)
    return 1 - iou + (distance + shape) / 2


def _iou(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union, each (...)."""
    low = torch.maximum(boxes[..., :2], targets[..., :2])
    high = torch.minimum(boxes[..., 2:], targets[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (boxes, targets)]
    union = areas[0] + areas[1] - shared
    return shared / (union + EPSILON), union


def _hull(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height (...) of the smallest box around both."""
    low = torch.minimum(boxes[..., :2], targets[..., :2])
    high = torch.maximum(boxes[..., 2:], targets[..., 2:])
    width, height = (high - low).unbind(-1)
    return width, height
