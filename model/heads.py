"""The prediction layers: per level, not shared, one 3x3 convolution for each task.

Decoupled heads, of the later soft version, have a 3x3 with norm and activation and a 1x1 instead.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import ConvNormAct, initialise

# Every class starts at probability 0.01; else background would dominate the first steps.
PRIOR_BIAS = -math.log(99.0)


class Heads(nn.Module):
    """Offsets and class logits of every anchor, in the order of the anchors."""

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        anchors_per_cell: int,
        decoupled: bool = False,
    ) -> None:
        super().__init__()
        build = _decoupled_head if decoupled else _head
        self.num_classes = num_classes
        offsets, logits = anchors_per_cell * 4, anchors_per_cell * num_classes
        self.localize = nn.ModuleList(build(width, offsets, 0.0) for width in widths)
        self.classify = nn.ModuleList(build(width, logits, PRIOR_BIAS) for width in widths)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return deltas (B, A, 4) and logits (B, A, C) of one (B, F_i, h, w) per level."""
        deltas = [_flat(head(x), 4) for head, x in zip(self.localize, levels, strict=True)]
        logits = [
            _flat(head(x), self.num_classes) for head, x in zip(self.classify, levels, strict=True)
        ]
        return torch.cat(deltas, dim=1), torch.cat(logits, dim=1)


def _decoupled_head(channels: int, outputs: int, bias: float) -> nn.Sequential:
    """Build a 3x3 with norm and activation, and the 1x1 of one level and task."""
    features = ConvNormAct(channels, channels)
    initialise(features)
    return nn.Sequential(features, _head(channels, outputs, bias, kernel=1))


def _head(channels: int, outputs: int, bias: float, kernel: int = 3) -> nn.Conv2d:
    """Build the last convolution of one level and task."""
    layer = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer


def _flat(x: Tensor, outputs: int) -> Tensor:
    """Reshape (B, K * outputs, h, w) to (B, h * w * K, outputs), with K anchors per cell."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, outputs)
