"""What every backbone offers to the necks."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Maps (B, 3, H, W) to feature maps of widths `channels`, finest (stride 8) first."""

    channels: tuple[int, ...]
    neck_channels: int

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one (B, channels[i], H / stride_i, W / stride_i) per map."""
        raise NotImplementedError
