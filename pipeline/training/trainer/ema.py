"""An exponential moving average of the weights, which is evaluated and registered."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """Averages the parameters and batch-norm statistics of a model, and counts updates.

    The decay rises over ``ramp`` updates, so that the initial weights lose influence early.

    The tensors of both are collected once, so an update is two launches on a GPU, however many
    tensors there are. They may be overwritten later, but not replaced.
    """

    def __init__(self, model: Model, decay: float, ramp: float = 200.0) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp = decay, ramp
        self.updates = 0
        pairs = list(zip(_state(self.module), _state(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights."""
        self.updates += 1
        weight = 1.0 - self.decay * (1.0 - math.exp(-self.updates / self.ramp))
        averages, values = map(list, zip(*self._averaged, strict=True))
        torch._foreach_lerp_(averages, values, weight)
        if self._copied:
            averages, values = map(list, zip(*self._copied, strict=True))
            torch._foreach_copy_(averages, values)


def _state(module: nn.Module) -> list[torch.Tensor]:
    # Excludes buffers such as anchors, which change with the input size.
    return list(module.state_dict().values())
