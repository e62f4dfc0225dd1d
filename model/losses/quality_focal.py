"""Quality focal loss: the class score learns how good an anchor is, not only that it is positive.

The form of the authors of Mutual Guidance (after VarifocalNet, Zhang et al., 2021), with the first
term of PolyLoss (Leng et al., 2022).
"""

import torch
from torch import Tensor
from torch.nn import functional


def quality_focal(
    logits: Tensor, quality: Tensor, alpha: float, gamma: float, poly: float = 0.0
) -> Tensor:
    """Loss of each logit; `quality` has the same shape, above 0 on positives.

    Positives: cross-entropy with the quality, weighted by it. Others: with 0, weighted by
    alpha p^gamma. To both, poly x (1 - p_t)^3 is added, p_t being p on positives and 1 - p
    elsewhere. Logarithms keep the gradient finite for any gamma and logit.
    """
    positive = quality > 0
    log_p, log_not_p = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    on_positive = quality * (quality * log_p + (1 - quality) * log_not_p)
    elsewhere = alpha * (gamma * log_p).exp() * log_not_p
    loss = -torch.where(positive, on_positive, elsewhere)
    if poly == 0:
        return loss
    log_wrong = torch.where(positive, log_not_p, log_p)
    return loss + poly * (3 * log_wrong).exp()
