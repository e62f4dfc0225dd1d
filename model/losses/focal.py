"""Focal loss (Lin et al., 2017): cross-entropy that mutes what is already right."""

import torch
from torch import Tensor
from torch.nn import functional


def focal(logits: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """Loss of each logit; `positive` is a bool tensor of the same shape.

    alpha_t (1 - p_t)^gamma (-log p_t), with p_t the probability of the right answer and alpha_t
    `alpha` on positives, `1 - alpha` elsewhere. Logarithms throughout keep the gradient finite for
    any gamma and logit.
    """
    right = torch.where(positive, logits, -logits)
    log_right = functional.logsigmoid(right)
    log_wrong = log_right - right
    weight = torch.where(positive, -alpha, alpha - 1.0).to(logits.dtype)
    return weight * (gamma * log_wrong).exp() * log_right
