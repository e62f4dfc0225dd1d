"""The convolution blocks that backbones and necks share, and how they are initialised."""

import math

import torch
from torch import Tensor, nn

NORMS = ("batch", "group")


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics if a batch has one value per channel.

    That is the case on the last level in a pass of one image of 64 px. One value has no variance.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to the same shape."""
        if not self.training or x.shape[0] * x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class DepthwiseConv(nn.Conv2d):
    """Convolution of each channel alone, in float32 on CPUs also under autocast.

    oneDNN has no fast gradient of it in bfloat16: it takes three times as long as in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, F, h', w')."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; 'same' padding at stride 1.

    `kernel` is the side of the kernel or its height and width. The norm cancels a bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
        bias: bool = False,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2 * dilation, width // 2 * dilation)
        conv = nn.Conv2d(
            inputs, outputs, (height, width), stride, padding, dilation=dilation, bias=bias
        )
        super().__init__(conv, BatchNorm(outputs), *([nn.ReLU(inplace=True)] if activation else []))


def initialise(module: nn.Module) -> None:
    """Initialise all convolutions as He et al. (2015), and norms as the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def use_group_norm(module: nn.Module) -> None:
    """Replace all batch norms by group norms, of at least 4 channels per group.

    A group norm treats each image on its own, so training does not depend on how a batch is split.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = math.gcd(32, max(1, channels // 4), channels)
            setattr(module, name, nn.GroupNorm(groups, channels))
        else:
            use_group_norm(child)


def use_silu(module: nn.Module) -> None:
    """Replace all ReLUs by SiLU (Elfwing et al., 2018)."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU(inplace=child.inplace))
        else:
            use_silu(child)


def upsample_to(features: Tensor, like: Tensor) -> Tensor:
    """Upsample (B, F, h, w) to the height and width of `like`, by nearest neighbour."""
    return nn.functional.interpolate(features, size=like.shape[-2:], mode="nearest")
