"""The fixed boxes that predictions start from: as in the paper, 24 px on stride 8, doubling."""

import math

import torch
from torch import Tensor

FIRST_STRIDE = 8
BASE_SIZE = 24.0
SCALES = (1.0, math.sqrt(2.0))
RATIOS = (1.0, 2.0, 0.5)  # width : height
ANCHORS_PER_CELL = len(SCALES) * len(RATIOS)


def level_strides(image_size: int) -> tuple[int, ...]:
    """Return the strides of the pyramid's levels: 4 levels below 512 px, 5 from there."""
    return tuple(FIRST_STRIDE << level for level in range(4 if image_size < 512 else 5))


def make_anchors(image_size: int) -> tuple[Tensor, Tensor]:
    """Return the anchors (A, 4) of a square input and the stride of each, (A,).

    The order is level, row, column, scale, ratio. Centres are (i + 0.5) x stride; anchors are not
    clipped to the image.
    """
    levels = [_level_anchors(image_size, stride) for stride in level_strides(image_size)]
    strides = [
        torch.full((len(boxes),), float(stride))
        for boxes, stride in zip(levels, level_strides(image_size), strict=True)
    ]
    return torch.cat(levels), torch.cat(strides)


def _level_anchors(image_size: int, stride: int) -> Tensor:
    """Return the anchors of one level, (cells x 6, 4), rounded to float32 once, at the end."""
    cells = math.ceil(image_size / stride)
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * stride
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    base = BASE_SIZE * stride / FIRST_STRIDE
    sizes = [(base * s * math.sqrt(r), base * s / math.sqrt(r)) for s in SCALES for r in RATIOS]
    half = torch.tensor(sizes, dtype=torch.float64) / 2
    centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)
    return torch.cat([centres - half, centres + half], dim=-1).reshape(-1, 4).float()
