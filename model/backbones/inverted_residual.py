"""Networks of inverted residual blocks (Sandler et al., 2018), which need little arithmetic."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from ..layers import BatchNorm, DepthwiseConv, initialise
from .base import Backbone


class Stage(NamedTuple):
    """Blocks of one width, of which the first one has the stride."""

    expansion: int
    kernel: int
    width: int
    blocks: int
    stride: int


class InvertedResidual(nn.Module):
    """Widening 1x1, depthwise convolution and linear 1x1, beside the identity if shapes agree."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stage: Stage,
        stride: int,
        eps: float,
        pads_end: bool,
    ) -> None:
        super().__init__()
        hidden = inputs * stage.expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.expand = _conv(inputs, hidden, 1, eps=eps) if stage.expansion > 1 else nn.Identity()
        self.depthwise = _conv(
            hidden, hidden, stage.kernel, stride, depthwise=True, eps=eps, pads_end=pads_end
        )
        self.project = _conv(hidden, outputs, 1, eps=eps, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, G, h / stride, w / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class InvertedResidualNet(Backbone):
    """Stem of stride 2 and stages of blocks; the last blocks at strides 8, 16, 32 are the maps.

    `eps` is that of the batch norms. With `pads_end`, convolutions of stride 2 are padded as
    TensorFlow's "same" pads even sides: one row and column less at the start than at the end.
    """

    neck_channels = 96

    def __init__(
        self,
        stages: Sequence[Stage],
        stem_width: int = 32,
        eps: float = 1e-5,
        pads_end: bool = False,
    ) -> None:
        super().__init__()
        self.stem = _conv(3, stem_width, 3, stride=2, eps=eps, pads_end=pads_end)
        blocks: list[nn.Module] = []
        self._starts: list[int] = []  # first block of each resolution
        widths = [stem_width]
        for stage in stages:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                if stride == 2:
                    self._starts.append(len(blocks))
                blocks.append(
                    InvertedResidual(widths[-1], stage.width, stage, stride, eps, pads_end)
                )
                widths.append(stage.width)
        self.blocks = nn.ModuleList(blocks)
        self._ends = [*self._starts[1:], len(blocks)]
        self.channels = tuple(widths[end] for end in self._ends[1:])
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps at strides 8, 16, 32 of images (B, 3, H, W)."""
        x, maps = self.stem(images), []
        for position, block in enumerate(self.blocks, start=1):
            x = block(x)
            if position in self._ends[1:]:
                maps.append(x)
        return maps

    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return the stem with the blocks at its stride, and the blocks at strides 4 to 32."""
        blocks = list(self.blocks)
        at_stride_2 = [self.stem, *blocks[: self._starts[0]]]
        return [at_stride_2, *(blocks[a:b] for a, b in pairwise([*self._starts, len(blocks)]))]


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    depthwise: bool = False,
    eps: float,
    pads_end: bool = False,
    activation: bool = True,
) -> nn.Sequential:
    """Build convolution `conv`, norm `norm` and ReLU6, with padding before them if `pads_end`."""
    layers = nn.Sequential()
    padding = kernel // 2
    if stride == 2 and pads_end:
        before = padding - 1
        layers.add_module("pad", nn.ZeroPad2d((before, padding, before, padding)))
        padding = 0
    kind, groups = (DepthwiseConv, inputs) if depthwise else (nn.Conv2d, 1)
    conv = kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers.add_module("conv", conv)
    layers.add_module("norm", BatchNorm(outputs, eps=eps))
    if activation:
        layers.add_module("act", nn.ReLU6(inplace=True))
    return layers
