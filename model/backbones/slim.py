"""A small residual network that trains from random weights in minutes on a CPU.

Plain 3x3 convolutions, narrow at high resolution: a CPU reaches its arithmetic peak on them, while
depthwise ones are limited by memory. Maps at strides 8, 16 and 32.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import BatchNorm, ConvNormAct, initialise
from .base import Backbone


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to the same shape."""
        return nn.functional.relu(x + self.second(self.first(x)))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Build a strided convolution and residual blocks."""
    down = ConvNormAct(inputs, outputs, stride=2)
    return nn.Sequential(down, *(ResidualBlock(outputs) for _ in range(blocks)))


class Slim(Backbone):
    """Stem to stride 4, then three residual stages."""

    channels = (64, 128, 192)
    neck_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, 16, stride=2), ConvNormAct(16, 32, stride=2))
        self.stages = nn.ModuleList([_stage(32, 64, 1), _stage(64, 128, 1), _stage(128, 192, 1)])
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps at strides 8, 16, 32 of images (B, 3, H, W)."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return the stem and the three residual stages."""
        return [[self.stem], *([stage] for stage in self.stages)]
