"""The paper's light RetinaNet neck: the FSSD pyramid, refined from the top down."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import ConvNormAct, upsample_to
from .fssd import FSSDNeck


class RetinaNetNeck(nn.Module):
    """FSSD pyramid, 1x1 laterals with top-down addition, a 3x3 convolution per level.

    `fusion` and `published` are `FSSDNeck`'s. The published laterals have norm and ReLU.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        levels: int,
        fusion: nn.Module | None = None,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.widths = (channels,) * levels
        self.pyramid = FSSDNeck(inputs, channels, levels, fusion, published)
        self.laterals = nn.ModuleList(
            ConvNormAct(channels, channels, kernel=1, bias=True)
            if published
            else nn.Conv2d(channels, channels, 1)
            for _ in range(levels)
        )
        self.outputs = nn.ModuleList(
            ConvNormAct(channels, channels, bias=published) for _ in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, channels, h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        pyramid = self.pyramid(maps)
        levels = [lateral(x) for lateral, x in zip(self.laterals, pyramid, strict=True)]
        for fine in reversed(range(len(levels) - 1)):
            levels[fine] = levels[fine] + upsample_to(levels[fine + 1], levels[fine])
        return [output(x) for output, x in zip(self.outputs, levels, strict=True)]
