"""Focal loss (Lin et al., 2017): cross-entropy with less weight on easy scores."""

import torch
from torch import Tensor
from torch.nn import functional


def focal(logits: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the loss of each logit, (...); `positive` is a mask of the same shape.

    alpha_t (1 - p_t)^gamma (-log p_t), with p_t the probability of the true answer and alpha_t
    `alpha` on positives, `1 - alpha` on negatives. Computed in logarithms, which keeps the gradient
    finite for any gamma and logit.
    """
    # log(p_t) and log(1 - p_t).
    true_logit = torch.where(positive, logits, -logits)
    log_p_t = functional.logsigmoid(true_logit)
    log_not_p_t = log_p_t - true_logit
    # Minus alpha_t.
    weight = torch.where(positive, -alpha, alpha - 1.0).to(logits.dtype)
    return weight * (gamma * log_not_p_t).exp() * log_p_t
