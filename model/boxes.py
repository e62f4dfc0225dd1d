"""Box geometry: overlaps, and the offsets that a network regresses instead of boxes."""

import math

import torch
from torch import Tensor

CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
# A box is at most 62.5 times its anchor: keeps exp() finite while the network is untrained.
MAX_LOG_GROWTH = math.log(1000.0 / 16.0)


@torch.no_grad()
def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of all pairs: (..., N, 4), (..., K, 4) -> (..., N, K). Not differentiable.

    Empty and inverted boxes overlap nothing.
    """
    inter, area, other_area = _intersection(boxes, others)
    union = (area + other_area).sub_(inter).clamp_(min=torch.finfo(inter.dtype).tiny)
    return inter.div_(union)


@torch.no_grad()
def box_coverage(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the share of each box that another covers: (..., N, 4), (..., K, 4) -> (..., N, K)."""
    inter, area, _ = _intersection(boxes, others)
    return inter.div_(area.clamp(min=torch.finfo(inter.dtype).tiny))


def _intersection(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the intersections (..., N, K) and the areas (..., N, 1) and (..., 1, K)."""
    # Contiguous rows of coordinates, so that every pass below streams through memory.
    x1, y1, x2, y2 = boxes.transpose(-1, -2).contiguous().unsqueeze(-1).unbind(-3)  # (..., N, 1)
    u1, v1, u2, v2 = others.transpose(-1, -2).contiguous().unsqueeze(-2).unbind(-3)  # (..., 1, K)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    area = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    other_area = (u2 - u1).clamp(min=0) * (v2 - v1).clamp(min=0)
    return width.mul_(height), area, other_area


def to_centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return centres (..., 2) and sizes (..., 2) of boxes xyxy (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the offsets (..., 4) from anchors to boxes, divided by the variances.

    Finite for any input: sizes below 1e-6 count as 1e-6.
    """
    centre, size = to_centres(boxes)
    anchor_centre, anchor_size = to_centres(anchors)
    shift = (centre - anchor_centre) / (anchor_size * CENTRE_VARIANCE)
    growth = (size.clamp(min=1e-6) / anchor_size).log() / SIZE_VARIANCE
    return torch.cat([shift, growth], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Invert `encode`: offsets (..., 4), anchors (..., 4) -> boxes (..., 4)."""
    anchor_centre, anchor_size = to_centres(anchors)
    centre = anchor_centre + deltas[..., :2] * CENTRE_VARIANCE * anchor_size
    growth = (deltas[..., 2:] * SIZE_VARIANCE).clamp(max=MAX_LOG_GROWTH)
    half = growth.exp() * anchor_size / 2
    return torch.cat([centre - half, centre + half], dim=-1)
