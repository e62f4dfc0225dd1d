"""VGG-16 with batch norm (Simonyan & Zisserman, 2015), with torchvision's weight names.

The paper's backbone. Without the classifier and the last pooling.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import initialise
from .base import Backbone

# Width and number of 3x3 convolutions of each block; between blocks is a 2x2 pooling.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(Backbone):
    """Five blocks of 3x3 convolutions; the last two, at strides 8 and 16, are the feature maps."""

    channels = (512, 512)
    neck_channels = 256

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        inputs = 3
        for width, convolutions in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                conv = nn.Conv2d(inputs, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            self._ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps at strides 8, 16 of images (B, 3, H, W)."""
        x, maps = images, []
        for position, layer in enumerate(self.features, start=1):
            x = layer(x)
            if position in self._ends[3:]:
                maps.append(x)
        return maps

    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return the five blocks."""
        layers, starts = list(self.features), [0, *self._ends[:-1]]
        return [layers[start:end] for start, end in zip(starts, self._ends, strict=True)]
