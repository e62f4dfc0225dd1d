"""The detector: backbone, neck and heads chosen by name, for one input size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .anchor_shapes import FIRST_STRIDE, AnchorShapes
from .anchors import make_anchors
from .backbones import build_backbone
from .heads import Heads
from .layers import NORMS, initialise, use_group_norm, use_silu
from .names import (
    ACTIVATIONS,
    HEAD_NAMES,
    NECK_NAMES,
    NECK_VARIANTS,
    TIMM_PREFIX,
    check_backbone,
    check_name,
)
from .necks import NECKS, PUBLISHED_NECKS

# Mean and standard deviation of ImageNet's pixels in 0..255, which published backbones expect.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Predictions(NamedTuple):
    """The outputs of the network for every anchor."""

    deltas: Tensor
    """(B, A, 4) encoded offsets."""
    logits: Tensor
    """(B, A, C) class logits."""


class Detector(nn.Module):
    """Images (B, 3, S, S), RGB, uint8 or float in 0..255 -> Predictions.

    Buffers are not persistent: the state dict holds what is learned, `spec` the rest.
    """

    anchors: Tensor
    anchor_strides: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        neck: str,
        num_classes: int,
        image_size: int,
        neck_channels: int | None = None,
        norm: str = "batch",
        anchor_shapes: AnchorShapes | None = None,
        neck_variant: str = "compact",
        head: str = "plain",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _check(backbone, neck, num_classes, image_size, neck_channels, norm)
        check_name("neck_variant", neck_variant, NECK_VARIANTS)
        check_name("head", head, HEAD_NAMES)
        check_name("activation", activation, ACTIVATIONS)
        self.anchor_shapes = shapes = anchor_shapes or AnchorShapes()
        self.num_classes = num_classes
        self.image_size = image_size
        self.backbone = build_backbone(backbone)
        width = self.backbone.neck_channels if neck_channels is None else neck_channels
        strides = shapes.level_strides(image_size)
        self.first_map = _first_map(backbone, len(self.backbone.channels), strides[0])
        necks = PUBLISHED_NECKS if neck_variant == "published" else NECKS
        self.neck = necks[neck](self.backbone.channels[self.first_map :], width, len(strides))
        initialise(self.neck)
        self.heads = Heads(self.neck.widths, num_classes, shapes.per_cell, head == "decoupled")
        if activation == "silu":
            use_silu(self.neck)
            use_silu(self.heads)
        if norm == "group":
            use_group_norm(self)
        self.spec: dict[str, Any] = {
            "backbone": backbone,
            "neck": neck,
            "neck_variant": neck_variant,
            "num_classes": num_classes,
            "image_size": image_size,
            "neck_channels": width,
            "norm": norm,
            "anchor_base": shapes.base,
            "anchor_scales": shapes.scales,
            "anchor_ratios": shapes.ratios,
            "anchor_clamp": shapes.clamp,
            "strides": shapes.strides,
            "head": head,
            "activation": activation,
        }
        anchors, anchor_strides = make_anchors(image_size, shapes)
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("anchor_strides", anchor_strides, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def resize_input(self, image_size: int) -> None:
        """Change the side of the input: the anchors change, the weights stay.

        Raise ValueError if the side is not divisible by 64 or needs another number of levels.
        """
        before, after = (self.anchor_shapes.level_strides(s) for s in (self.image_size, image_size))
        if image_size % 64 or before != after:
            raise ValueError(
                f"image_size {image_size} does not fit a detector built for "
                f"{self.spec['image_size']}; choose a multiple of 64 on the same side of 512"
            )
        self.image_size = image_size
        anchors, strides = make_anchors(image_size, self.anchor_shapes)
        self.anchors, self.anchor_strides = anchors.to(self.mean), strides.to(self.mean)

    def forward(self, images: Tensor) -> Predictions:
        """Return deltas (B, A, 4) and logits (B, A, C) of images (B, 3, S, S)."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}, the detector is built for "
                f"{self.image_size} x {self.image_size}; resize the images or build another"
            )
        maps = self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)
        return Predictions(*self.heads(self.neck(maps[self.first_map :])))


def build_detector(
    backbone: str = "slim",
    neck: str = "retinanet",
    num_classes: int = 1,
    image_size: int = 320,
    neck_channels: int | None = None,
    norm: str = "batch",
    anchor_base: float | None = None,
    anchor_scales: Sequence[float] | None = None,
    anchor_ratios: Sequence[float] | None = None,
    neck_variant: str = "compact",
    anchor_clamp: bool = False,
    strides: Sequence[int] = (),
    head: str = "plain",
    activation: str = "relu",
) -> Detector:
    """Build a detector with random weights; `build_detector(**detector.spec)` has the same shape.

    `neck_channels` is the width of the pyramid; None takes the one that suits the backbone. `norm`,
    "batch" or "group", holds for the whole network. `anchor_base` is the side in pixels of the
    square anchor of scale 1 on stride 8, which doubles from level to level; each cell has an anchor
    for each of `anchor_scales` and `anchor_ratios` (width / height). None takes the paper's.
    `anchor_clamp` limits their sides to the input's. `neck_variant` is "compact" or "published".
    `strides` are those of the levels, by default 8 to 64, or to 128 from 512 px. `head` is "plain"
    or "decoupled"; `activation`, "relu" or "silu", is that of neck and heads. Raise ValueError on
    unknown names and impossible sizes.
    """
    shapes = AnchorShapes.make(anchor_base, anchor_scales, anchor_ratios, anchor_clamp, strides)
    return Detector(
        backbone,
        neck,
        num_classes,
        image_size,
        neck_channels,
        norm,
        shapes,
        neck_variant,
        head,
        activation,
    )


def _first_map(backbone: str, maps: int, stride: int) -> int:
    """Return the index of the backbone's map at a stride; raise ValueError if it has none."""
    index = (FIRST_STRIDE, 2 * FIRST_STRIDE, 4 * FIRST_STRIDE).index(stride)
    if index >= maps:
        raise ValueError(
            f"strides begin at {stride}, but {backbone} has maps at strides up to "
            f"{FIRST_STRIDE << (maps - 1)}; begin there, or choose another backbone"
        )
    return index


def _check(
    backbone: str,
    neck: str,
    num_classes: int,
    image_size: int,
    neck_channels: int | None,
    norm: str,
) -> None:
    """Raise ValueError on unknown names and impossible sizes."""
    check_backbone(backbone)
    check_name("neck", neck, sorted(NECK_NAMES))
    check_name("norm", norm, NORMS)
    if norm == "group" and backbone.startswith(TIMM_PREFIX):
        raise ValueError(
            f"norm 'group' does not work with {backbone}, which has its own norms; use 'batch'"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a detector needs at least one class")
    if neck_channels is not None and (neck_channels < 2 or neck_channels % 2):
        raise ValueError(f"neck_channels is {neck_channels}; it must be a positive even number")
    if image_size < 64 or image_size % 64:
        low = max(64, image_size // 64 * 64)
        raise ValueError(
            f"image_size {image_size} is not divisible by 64; the nearest are {low} and {low + 64}"
        )
