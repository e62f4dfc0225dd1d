"""The check that gradients are finite, without a wait for the GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data import Batch


class NonFiniteGradientError(FloatingPointError):
    """The gradient of a step is not finite; ``batch`` is this rank's share of its batch."""

    def __init__(self, step: int, batch: Batch) -> None:
        super().__init__(f"the gradient is not finite at step {step}")
        self.step, self.batch = step, batch


class _Pending(NamedTuple):
    step: int
    batch: Batch
    norm: Tensor  # on the CPU, valid after the event
    copied: torch.cuda.Event | None


class GradientCheck:
    """Raises `NonFiniteGradientError` for gradient norms that are not finite.

    To read a norm from a GPU, the CPU waits until the GPU has computed it; then the GPU waits for
    the CPU to launch the rest of the step. If ``delayed``, the norm of a step is therefore read in
    the next step, or by `finish`. All ranks have the same norms and raise at the same step.
    """

    def __init__(self, delayed: bool) -> None:
        self.delayed = delayed
        self._pending: _Pending | None = None

    def submit(self, step: int, batch: Batch, norm: Tensor) -> None:
        """Check the norm of a step, or that of the step before if delayed."""
        before, self._pending = self._pending, _copy_to_cpu(step, batch, norm)
        if not self.delayed:
            self.finish()
        elif before is not None:
            _check(before)

    def finish(self) -> None:
        """Check what has been submitted."""
        pending, self._pending = self._pending, None
        if pending is not None:
            _check(pending)


def _copy_to_cpu(step: int, batch: Batch, norm: Tensor) -> _Pending:
    if norm.device.type != "cuda":
        return _Pending(step, batch, norm, None)
    host = torch.empty_like(norm, device="cpu", pin_memory=True)
    host.copy_(norm, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return _Pending(step, batch, host, copied)


def _check(pending: _Pending) -> None:
    if pending.copied is not None:
        pending.copied.synchronize()
    if not torch.isfinite(pending.norm):
        raise NonFiniteGradientError(pending.step, pending.batch)
