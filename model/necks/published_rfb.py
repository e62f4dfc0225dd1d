"""RFBNet as its authors and those of Mutual Guidance have it: wide blocks that grow from stride 16.

The block at stride 8 has 7 branches, those of further levels have 3. Widths are those of VGG-16:
with 256 channels, 512 at stride 8, then 512, 512, 256.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import ConvNormAct, upsample_to


class Branch(NamedTuple):
    """A branch: its widths from 1x1 to dilated 3x3, as parts of a unit, and the kernels between."""

    widths: tuple[float, ...]
    kernels: tuple[tuple[int, int], ...]
    dilation: int


# The unit is a quarter of the width of the input.
FIRST_BRANCHES = (
    Branch((1, 1), (), 1),
    Branch((1, 1, 1), ((3, 1),), 3),
    Branch((1, 1, 1), ((1, 3),), 3),
    Branch((1, 1, 1), ((5, 1),), 5),
    Branch((1, 1, 1), ((1, 5),), 5),
    Branch((1 / 2, 3 / 4, 1, 1), ((1, 3), (3, 1)), 7),
    Branch((1 / 2, 3 / 4, 1, 1), ((3, 1), (1, 3)), 7),
)
# The unit is an eighth of it. The last layer before the dilated 3x3 has the stride.
FURTHER_BRANCHES = (
    Branch((2, 2), (), 1),
    Branch((1, 2, 2), ((3, 3),), 3),
    Branch((1, 3 / 2, 2, 2), ((3, 3), (3, 3)), 5),
)


class WideReceptiveFieldBlock(nn.Module):
    """Branches, concatenated, mixed by 1x1 and added to a 1x1 shortcut; all with bias and norm."""

    def __init__(
        self, inputs: int, outputs: int, branches: Sequence[Branch], unit: float, stride: int = 1
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(inputs, unit, branch, stride) for branch in branches)
        width = sum(_width(unit, branch.widths[-1]) for branch in branches)
        self.mix = ConvNormAct(width, outputs, kernel=1, activation=False, bias=True)
        self.shortcut = ConvNormAct(
            inputs, outputs, kernel=1, stride=stride, activation=False, bias=True
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        mixed = self.mix(torch.cat([branch(x) for branch in self.branches], dim=1))
        activated: Tensor = self.activation(mixed + self.shortcut(x))
        return activated


class PublishedRFBNeck(nn.Module):
    """A block on the concatenated maps at the first stride; a chain of blocks from the next map.

    `widths` of the levels are 2, 2, 2 and 1 times `channels`, and 1 from there. Raise ValueError
    for a backbone with fewer than two maps.
    """

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        if len(inputs) < 2:
            raise ValueError(
                "neck 'rfb' in its published variant grows from a second map, at twice the first "
                "stride, which this backbone lacks; choose another backbone or variant"
            )
        self.widths = tuple(channels * (2 if level < 3 else 1) for level in range(levels))
        self.reduce = nn.ModuleList(
            ConvNormAct(width, channels, kernel=1, bias=True) for width in inputs
        )
        fused = channels * len(inputs)
        self.first = WideReceptiveFieldBlock(fused, self.widths[0], FIRST_BRANCHES, fused / 4)
        self.further = nn.ModuleList(
            WideReceptiveFieldBlock(before, after, FURTHER_BRANCHES, before / 8, stride)
            for (before, after), stride in zip(
                pairwise((inputs[1], *self.widths[1:])),
                (1, *[2] * (levels - 2))[: levels - 1],
                strict=True,
            )
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, widths[i], h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        same_size = [reduced[0], *(upsample_to(x, reduced[0]) for x in reduced[1:])]
        levels = [self.first(torch.cat(same_size, dim=1))]
        x = maps[1]
        for block in self.further:
            x = block(x)
            levels.append(x)
        return levels


def _width(unit: float, part: float) -> int:
    """Return a width in channels, at least 1."""
    return max(1, int(unit * part))


def _branch(inputs: int, unit: float, branch: Branch, stride: int) -> nn.Sequential:
    """Build 1x1, the kernels, and a dilated 3x3 without activation."""
    widths = [inputs, *(_width(unit, part) for part in branch.widths)]
    kernels = ((1, 1), *branch.kernels)
    strides = (*[1] * (len(kernels) - 1), stride)
    layers = [
        ConvNormAct(before, after, kernel, stride=step, bias=True)
        for (before, after), kernel, step in zip(
            pairwise(widths[:-1]), kernels, strides, strict=True
        )
    ]
    last = ConvNormAct(
        widths[-2], widths[-1], dilation=branch.dilation, activation=False, bias=True
    )
    return nn.Sequential(*layers, last)
