"""Count a detector's parameters and the floating-point operations per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import build_detector


class ModelCost(NamedTuple):
    """Parameters in total and by part, and operations of one forward pass on one image."""

    backbone: str
    neck: str
    image_size: int
    parameters: int
    backbone_parameters: int
    neck_parameters: int
    heads_parameters: int
    flops: int
    """An addition and a multiplication count as two; only convolutions are counted, as usual."""


def model_cost(
    backbone: str, neck: str, image_size: int, num_classes: int, **others: Any
) -> ModelCost:
    """Return the cost of a detector without computing anything.

    ``others`` are further arguments of `build_detector`, such as ``anchor_ratios``. Raises
    ValueError for the names and sizes that `build_detector` rejects.
    """
    with torch.device("meta"):
        detector = build_detector(backbone, neck, num_classes, image_size, **others).eval()
        image = torch.empty(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector(image)
    return ModelCost(
        backbone,
        neck,
        image_size,
        parameters=_count_parameters(detector),
        backbone_parameters=_count_parameters(detector.backbone),
        neck_parameters=_count_parameters(detector.neck),
        heads_parameters=_count_parameters(detector.heads),
        flops=counter.get_total_flops(),
    )


def markdown_table(costs: Sequence[ModelCost]) -> list[str]:
    """Return the lines of a Markdown table, in millions of parameters and GFLOPs."""
    lines = [
        "| backbone | neck | image | parameters | backbone | neck | heads | GFLOPs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        parts = (cost.backbone_parameters, cost.neck_parameters, cost.heads_parameters)
        millions = " | ".join(f"{count / 1e6:.2f} M" for count in (cost.parameters, *parts))
        lines.append(
            f"| {cost.backbone} | {cost.neck} | {cost.image_size} | {millions} "
            f"| {cost.flops / 1e9:.2f} |"
        )
    return lines


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
