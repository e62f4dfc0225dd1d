"""An exponential moving average of the weights, which is evaluated and registered."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

RAMP_STEPS = 200.0  # over which the decay rises, so that the initial weights lose influence early


class WeightAverage(Generic[Model]):
    """Averages the parameters and batch-norm statistics of a model, and counts updates."""

    def __init__(self, model: Model, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights."""
        self.updates += 1
        weight = 1.0 - self.decay * (1.0 - math.exp(-self.updates / RAMP_STEPS))
        averages, values = [], []
        for average, value in zip(_state(self.module), _state(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight)


def _state(module: nn.Module) -> list[torch.Tensor]:
    # Excludes buffers such as anchors, which change with the input size.
    return list(module.state_dict().values())
