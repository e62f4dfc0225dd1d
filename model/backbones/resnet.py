"""ResNet (He et al., 2016), with the weight names of torchvision so that its checkpoints load."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import initialise
from .base import Backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a strided 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, G, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(Backbone):
    """Stem and four stages; the last three, at strides 8, 16 and 32, are the feature maps."""

    neck_channels = 256

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(64, 64, blocks[0], stride=1)
        self.layer2 = _layer(64, 128, blocks[1], stride=2)
        self.layer3 = _layer(128, 256, blocks[2], stride=2)
        self.layer4 = _layer(256, 512, blocks[3], stride=2)
        self.channels = (128, 256, 512)
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps at strides 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet18() -> Backbone:
    """ResNet-18: 11.2 M parameters."""
    return ResNet((2, 2, 2, 2))
