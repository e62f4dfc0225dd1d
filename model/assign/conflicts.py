"""Anchors that objects choose first, and what happens when several choose the same one.

ATSS, SimOTA and TaskAligned let every object choose a few anchors on its own and settle conflicts
afterwards; Mutual Guidance settles first and chooses then (`claims`, `ranking`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .inputs import Scene

# Objects taken at a time: bounds memory by B x 8 x A, however many objects an image has.
CHUNK = 8


def in_chunks(
    choose: Callable[[Scene], tuple[Tensor, Tensor, Tensor]], scene: Scene
) -> tuple[Tensor, Tensor, Tensor]:
    """What the objects of a scene choose, three tensors (B, M, k), a few objects at a time."""
    starts = range(0, scene.labels.shape[1], CHUNK)
    chosen = [choose(scene.part(slice(start, start + CHUNK))) for start in starts]
    first, second, third = (torch.cat(pieces, 1) for pieces in zip(*chosen, strict=True))
    return first, second, third


def first_k(x: Tensor, k: int, largest: bool) -> Tensor:
    """(..., k) indices of the k largest or smallest of x (..., n) >= 0; equals by index."""
    k = min(k, x.shape[-1])
    if x.dtype == torch.float64:
        return x.sort(dim=-1, descending=largest, stable=True).indices[..., :k]
    # The bits of non-negative floats are ordered as they are; the index makes every key unique.
    index = torch.arange(x.shape[-1], device=x.device)
    key = (x.contiguous().view(torch.int32).long() << 32) + (-index if largest else index)
    return key.topk(k, dim=-1, largest=largest).indices


def settle(anchor: Tensor, merit: Tensor, chosen: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Gives every anchor to the object of highest merit among those that chose it.

    Each object's choice `anchor` (B, M, k), with `merit` and a mask `chosen` of the same shape.
    Equal merits go to the lowest object. Returns each anchor's object (B, A), -1 none, and the
    mask (B, M, k) of choices that were granted.
    """
    batch, objects, k = anchor.shape
    flat = torch.where(chosen, anchor, anchors).flatten(1)
    worth = merit.flatten(1)
    best = worth.new_full((batch, anchors + 1), -torch.inf)
    best = best.scatter_reduce_(1, flat, worth, "amax")
    tied = chosen.flatten(1) & (worth == best.gather(1, flat))
    index = torch.arange(objects, device=anchor.device).repeat_interleave(k).expand(batch, -1)
    owner = flat.new_full((batch, anchors + 1), objects)
    owner = owner.scatter_reduce_(1, flat, torch.where(tied, index, objects), "amin")
    granted = tied & (owner.gather(1, flat) == index)
    owner = owner[:, :anchors]
    return torch.where(owner < objects, owner, -1), granted.view_as(chosen)


def spread(anchor: Tensor, value: Tensor, granted: Tensor, anchors: int) -> Tensor:
    """(B, A) values (B, M, k) of the granted choices at their anchors, 0 elsewhere."""
    flat = torch.where(granted, anchor, anchors).flatten(1)
    filled = value.new_zeros(len(value), anchors + 1).scatter_(1, flat, value.flatten(1))
    return filled[:, :anchors].contiguous()
