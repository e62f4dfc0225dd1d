"""The convolution blocks that backbones and necks share, and how they are initialised."""

from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; 'same' padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


def initialise(module: nn.Module) -> None:
    """He initialisation of all convolutions; norms start as the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def upsample_to(features: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour upsampling of (B, F, h, w) to the height and width of `like`."""
    return nn.functional.interpolate(features, size=like.shape[-2:], mode="nearest")
