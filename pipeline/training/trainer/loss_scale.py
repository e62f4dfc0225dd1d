"""The scale of fp16 losses, which keeps small gradients above the smallest fp16 number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.training.trainer.optimizer import zero_momentum

# Where a smaller scale does not help, the gradient itself is not finite.
MIN_SCALE = 1.0


class LossScale:
    """torch's gradient scaler, which does nothing unless ``enabled``.

    Where a gradient overflows fp16, it leaves out the update and halves the scale.
    """

    def __init__(self, device: torch.device, optimizer: Optimizer, enabled: bool) -> None:
        self.enabled, self._device, self._optimizer = enabled, device, optimizer
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        if enabled:
            zero_momentum(optimizer)  # the first step may be left out

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def unscale(self) -> None:
        """Divide the gradients by the scale."""
        self._scaler.unscale_(self._optimizer)

    def without_overflow(self, norm: Tensor) -> Tensor:
        """Return a norm of the gradients, 0 where it is not finite because the scale is too high.

        The scale is not too high from `MIN_SCALE` downwards. Without a wait for the device.
        """
        if not self.enabled:
            return norm
        return torch.where(~norm.isfinite() & (self.value() > MIN_SCALE), 0.0, norm)

    def value(self) -> Tensor:
        """Return a copy of the scale on the device, ()."""
        scale: Tensor = self._scaler.scale(torch.ones((), device=self._device))
        return scale

    def step(self) -> None:
        """Update the weights, unless the gradients overflow, and then the scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def skip(self) -> None:
        """Update the scale alone."""
        if self.enabled:
            self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return the scale and the steps since it changed; nothing if not enabled."""
        return dict(self._scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state, which is empty where another precision saved it."""
        if self.enabled and state:
            self._scaler.load_state_dict(state)
