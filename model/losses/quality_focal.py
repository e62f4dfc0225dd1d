"""Quality focal loss: the target of a positive is the quality of its anchor instead of 1.

In the form used by the authors of Mutual Guidance (after VarifocalNet, Zhang et al., 2021), with
the first term of PolyLoss (Leng et al., 2022).
"""

import torch
from torch import Tensor
from torch.nn import functional


def quality_focal(
    logits: Tensor, quality: Tensor, alpha: float, gamma: float, poly: float = 0.0
) -> Tensor:
    """Return the loss of each logit, (...); `quality`, of the same shape, is above 0 on positives.

    On positives: cross-entropy with the quality as target, weighted by the quality. On negatives:
    cross-entropy with target 0, weighted by alpha p^gamma. On both, poly x (1 - p_t)^3 is added,
    with p_t = p on positives and 1 - p on negatives. Computed in logarithms, which keeps the
    gradient finite for any gamma and logit.
    """
    positive = quality > 0
    log_p, log_not_p = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    # Weighted cross-entropy.
    on_positive = quality * (quality * log_p + (1 - quality) * log_not_p)
    on_negative = alpha * (gamma * log_p).exp() * log_not_p
    loss = -torch.where(positive, on_positive, on_negative)
    if poly == 0:
        return loss
    # Poly term.
    log_not_p_t = torch.where(positive, log_not_p, log_p)
    return loss + poly * (3 * log_not_p_t).exp()
