"""Balanced L1 (Libra R-CNN, Pang et al., 2019): small errors count more than in smooth L1."""

import math

import torch
from torch import Tensor


def balanced_l1(
    prediction: Tensor,
    target: Tensor,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 0.11,
) -> Tensor:
    """Return the loss of each offset, (...): logarithmic below beta, linear above."""
    b = math.expm1(gamma / alpha)
    error = (prediction - target).abs()
    # Below beta. Clamped, since an overflow in the branch not taken would make its gradient NaN.
    small = error.clamp(max=beta)
    below = alpha / b * (b * small + 1) * torch.log1p(b * small / beta) - alpha * small
    # Above beta.
    above = gamma * error + (gamma / b - alpha * beta)
    return torch.where(error < beta, below, above)
