"""What ATSS, SimOTA and TaskAligned share: objects choose anchors first, conflicts are resolved
afterwards.

Mutual Guidance resolves first and chooses afterwards (`best_object`, `per_object_topk`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def join_chunks(chunks: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return three tensors (B, m, k) of chunks of objects as three of all objects, (B, M, k)."""
    first, second, third = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
    return first, second, third


def stable_topk(x: Tensor, k: int, largest: bool) -> Tensor:
    """Return the indices (..., k) of the k largest or smallest of x (..., n) >= 0.

    Equal values are ordered by index.
    """
    k = min(k, x.shape[-1])
    if x.dtype == torch.float64:
        return x.sort(dim=-1, descending=largest, stable=True).indices[..., :k]  # (..., k)
    # The bits of non-negative floats have the order of the floats; the index makes keys unique.
    index = torch.arange(x.shape[-1], device=x.device)
    key = (x.contiguous().view(torch.int32).long() << 32) + (-index if largest else index)
    return key.topk(k, dim=-1, largest=largest).indices  # (..., k)


def resolve_conflicts(
    anchor: Tensor, quality: Tensor, chosen: Tensor, num_anchors: int
) -> tuple[Tensor, Tensor]:
    """Give each anchor to the object of highest quality among those that chose it.

    Object g has the candidates `anchor` (B, M, k) with `quality` and the mask `chosen` of the same
    shape. Equal qualities go to the lowest object. Returns the object of each anchor (B, A), -1 for
    none, and the mask (B, M, k) of chosen candidates that the object keeps.
    """
    batch, num_objects, k = anchor.shape
    # One list of candidates per image; those not chosen get the extra anchor A.
    target = torch.where(chosen, anchor, num_anchors).flatten(1)  # (B, M x k)
    quality = quality.flatten(1)  # (B, M x k)
    # The highest quality of each anchor.
    best = quality.new_full((batch, num_anchors + 1), -torch.inf)
    best = best.scatter_reduce_(1, target, quality, "amax")  # (B, A + 1)
    is_best = chosen.flatten(1) & (quality == best.gather(1, target))  # (B, M x k)
    # The lowest object that has it.
    index = torch.arange(num_objects, device=anchor.device).repeat_interleave(k).expand(batch, -1)
    gt_index = target.new_full((batch, num_anchors + 1), num_objects)
    gt_index = gt_index.scatter_reduce_(
        1, target, torch.where(is_best, index, num_objects), "amin"
    )  # (B, A + 1)
    kept = is_best & (gt_index.gather(1, target) == index)  # (B, M x k)
    gt_index = gt_index[:, :num_anchors]  # (B, A)
    return torch.where(gt_index < num_objects, gt_index, -1), kept.view_as(chosen)


def scatter_to_anchors(anchor: Tensor, value: Tensor, kept: Tensor, num_anchors: int) -> Tensor:
    """Return the values (B, M, k) of the kept candidates at their anchors, (B, A); 0 elsewhere."""
    target = torch.where(kept, anchor, num_anchors).flatten(1)  # (B, M x k)
    filled = value.new_zeros(len(value), num_anchors + 1).scatter_(1, target, value.flatten(1))
    return filled[:, :num_anchors].contiguous()  # (B, A)
