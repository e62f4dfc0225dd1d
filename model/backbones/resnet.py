"""ResNet (He et al., 2016), with the weight names of torchvision, whose checkpoints load."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import initialise
from .base import Backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a strided 1x1 where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, G, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and a widening 1x1 beside the identity or a strided 1x1."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # The stride is here, not in conv1, as in the published weights ("ResNet v1.5").
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, 4 * width, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(Backbone):
    """Stem and four stages; the last three, at strides 8, 16 and 32, are the feature maps."""

    neck_channels = 256

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [64, *(width * block.expansion for width in (64, 128, 256, 512))]
        self.layer1 = _layer(block, widths[0], 64, blocks[0], stride=1)
        self.layer2 = _layer(block, widths[1], 128, blocks[1], stride=2)
        self.layer3 = _layer(block, widths[2], 256, blocks[2], stride=2)
        self.layer4 = _layer(block, widths[3], 512, blocks[3], stride=2)
        self.channels = (widths[2], widths[3], widths[4])
        initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps at strides 8, 16, 32 of images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]

    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return the stem and `layer1` to `layer4`."""
        layers = [[self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        return [[self.conv1, self.bn1], *layers]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Build the strided 1x1 beside a block, or None if the shape stays."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    """Build a stage of blocks, the first of them with the stride."""
    first = block(inputs, width, stride)
    outputs = width * block.expansion
    return nn.Sequential(first, *(block(outputs, width, 1) for _ in range(blocks - 1)))


def resnet18() -> Backbone:
    """Build ResNet-18: 11.2 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> Backbone:
    """Build ResNet-34: 21.3 M parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50() -> Backbone:
    """Build ResNet-50: 23.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3))
