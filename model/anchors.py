"""The fixed boxes that predictions start from, on the grid of each level."""

import math

import torch
from torch import Tensor

from .anchor_shapes import AnchorShapes


def make_anchors(image_size: int, shapes: AnchorShapes | None = None) -> tuple[Tensor, Tensor]:
    """Return the anchors (A, 4) of a square input and the stride of each, (A,).

    The order is level, row, column, scale, ratio. Centres are (i + 0.5) x stride; anchors are not
    clipped to the image, but `shapes` may limit their sides to the input's. Without `shapes` they
    are the paper's.
    """
    shapes = shapes or AnchorShapes()
    of_levels = shapes.level_strides(image_size)
    levels = [_level_anchors(image_size, stride, shapes) for stride in of_levels]
    strides = [
        torch.full((len(boxes),), float(stride))
        for boxes, stride in zip(levels, of_levels, strict=True)
    ]
    return torch.cat(levels), torch.cat(strides)


def _level_anchors(image_size: int, stride: int, shapes: AnchorShapes) -> Tensor:
    """Return the anchors of one level, (cells x K, 4), rounded to float32 once, at the end."""
    cells = math.ceil(image_size / stride)
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * stride
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    half = torch.tensor(shapes.sizes(stride, image_size), dtype=torch.float64) / 2  # (K, 2)
    centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)
    return torch.cat([centres - half, centres + half], dim=-1).reshape(-1, 4).float()
