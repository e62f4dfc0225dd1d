"""Smooth L1 (Fast R-CNN, Girshick, 2015): quadratic for small errors, linear for large ones."""

from torch import Tensor
from torch.nn import functional


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 0.11) -> Tensor:
    """Return the loss of each offset, (...): quadratic below beta, linear above."""
    return functional.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
