"""What a detector costs: learned parameters, and floating-point operations per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import build_detector


class Cost(NamedTuple):
    """Parameters in all and by part, and operations of one forward pass over one image."""

    backbone: str
    neck: str
    image_size: int
    parameters: int
    backbone_parameters: int
    neck_parameters: int
    heads_parameters: int
    flops: int
    """Additions and multiplications counted one each; convolutions alone, as everywhere."""


def cost(backbone: str, neck: str, image_size: int, num_classes: int) -> Cost:
    """The cost of a detector; nothing is computed. Raises ValueError as `build_detector`."""
    with torch.device("meta"):
        detector = build_detector(backbone, neck, num_classes, image_size).eval()
        image = torch.empty(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector(image)
    return Cost(
        backbone,
        neck,
        image_size,
        parameters=_parameters(detector),
        backbone_parameters=_parameters(detector.backbone),
        neck_parameters=_parameters(detector.neck),
        heads_parameters=_parameters(detector.heads),
        flops=counter.get_total_flops(),
    )


def table(costs: Sequence[Cost]) -> list[str]:
    """A Markdown table of costs, in millions of parameters and GFLOPs."""
    lines = [
        "| backbone | neck | image | parameters | backbone | neck | heads | GFLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in costs:
        parts = (item.backbone_parameters, item.neck_parameters, item.heads_parameters)
        millions = " | ".join(f"{count / 1e6:.2f} M" for count in (item.parameters, *parts))
        lines.append(
            f"| {item.backbone} | {item.neck} | {item.image_size} | {millions} "
            f"| {item.flops / 1e9:.2f} |"
        )
    return lines


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
