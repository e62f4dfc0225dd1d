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
    """Loss of each offset, same shape as the inputs; logarithmic below beta, linear above."""
    b = math.expm1(gamma / alpha)
    error = (prediction - target).abs()
    # Clamped: the branch not taken must not overflow, or its zero gradient becomes NaN.
    near = error.clamp(max=beta)
    inside = alpha / b * (b * near + 1) * torch.log1p(b * near / beta) - alpha * near
    outside = gamma * error + (gamma / b - alpha * beta)
    return torch.where(error < beta, inside, outside)
