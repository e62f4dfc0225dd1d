"""IoU losses of whole boxes: GIoU and SIoU."""

import torch
from torch import Tensor

# Keeps divisions and their gradients finite for empty boxes; negligible in pixels (squared).
EPSILON = 1e-9


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - GIoU (Rezatofighi et al., 2019), between 0 and 2: (..., 4), (..., 4) -> (...)."""
    iou, union = _iou(boxes, targets)  # (...) each
    width, height = _enclosing_size(boxes, targets)  # (...) each
    enclosing = width * height
    return 1 - iou + (enclosing - union) / (enclosing + EPSILON)


def siou(boxes: Tensor, targets: Tensor, theta: float = 4.0) -> Tensor:
    """Return the SIoU loss (Gevorgyan, 2022): (..., 4), (..., 4) -> (...).

    1 - IoU, plus half the sum of a distance cost of the centres and a shape cost. The distance
    costs more the less the centres are aligned along an axis.
    """
    iou, _ = _iou(boxes, targets)  # (...)
    width, height = _enclosing_size(boxes, targets)  # (...) each
    # Angle between the centres: sin(2 x angle), from sine and cosine, since the gradient of an
    # arcsine is infinite at the axes.
    shift = (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / 2  # (..., 2)
    shift_x, shift_y = shift.unbind(-1)  # (...) each
    squared = shift_x.square() + shift_y.square()
    angle = 2 * (shift_x * shift_y).abs() / (squared + EPSILON**2)
    # Distance of the centres, relative to the enclosing box.
    gamma = 2 - angle
    distance = sum(
        1 - torch.exp(-gamma * (d / (side + EPSILON)).square())
        for d, side in ((shift_x, width), (shift_y, height))
    )
    # Difference of the sizes.
    sizes = (boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2])  # (..., 2) each
    difference = (sizes[0] - sizes[1]).abs() / (torch.maximum(*sizes) + EPSILON)
    shape = ((1 - torch.exp(-difference)) ** theta).sum(-1)  # (...)
    return 1 - iou + (distance + shape) / 2


def _iou(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union, (...) each."""
    low = torch.maximum(boxes[..., :2], targets[..., :2])  # (..., 2)
    high = torch.minimum(boxes[..., 2:], targets[..., 2:])  # (..., 2)
    intersection = (high - low).clamp(min=0).prod(-1)  # (...)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (boxes, targets)]  # (...) each
    union = areas[0] + areas[1] - intersection
    return intersection / (union + EPSILON), union


def _enclosing_size(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return width and height, (...) each, of the smallest box around both."""
    low = torch.minimum(boxes[..., :2], targets[..., :2])  # (..., 2)
    high = torch.maximum(boxes[..., 2:], targets[..., 2:])  # (..., 2)
    width, height = (high - low).unbind(-1)  # (...) each
    return width, height
