"""How anchors rank within their object.

After each anchor has one object and one quality, ranking within objects is one sort over anchors,
not a top-k for each object. On a CPU even that sort is most of an assignment, so anchors that
cannot be among the wanted ones are left out first, by counting qualities in buckets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .best_object import Claims

BUCKETS = 32


class Ranking(NamedTuple):
    """Candidates of all images in one list of N."""

    anchor: Tensor
    """(N,) image x A + anchor."""
    slot: Tensor
    """(N,) image x (M + 1) + object; object M is no object."""
    rank: Tensor
    """(N,) how many candidates of the same slot are better; equals by anchor."""
    quality: Tensor
    """(N,) best first within a slot."""


def count_per_object(claims: Claims, threshold: float, objects: int) -> Tensor:
    """(B, M + 1) anchors of at least this quality per object; the last column is zero."""
    counted = (claims.owner >= 0) & (claims.quality >= threshold)
    counts = _count(torch.where(counted, claims.owner, objects), objects + 1)
    counts[:, objects] = 0
    return counts


def rank_in_object(claims: Claims, most: Tensor) -> Ranking:
    """Ranks of anchors within their objects, of at least the best `most` (B, M + 1) of each."""
    batch, slots = most.shape
    slot = torch.where(claims.owner >= 0, claims.owner, slots - 1)
    kept = _candidates(slot, claims, most)
    offset = torch.arange(batch, device=slot.device).unsqueeze(1) * slots
    slot, quality = (slot + offset).flatten()[kept], claims.quality.flatten()[kept]
    order = _order(slot, quality)
    slot = slot[order]
    counts = _count(slot.unsqueeze(0), batch * slots).squeeze(0)
    rank = torch.arange(len(slot), device=slot.device) - (counts.cumsum(0) - counts)[slot]
    return Ranking(kept[order], slot, rank, quality[order])


def pick(ranking: Ranking, wanted: Tensor, anchors: int) -> Tensor:
    """(B, A) mask of the best `wanted` (B, M + 1) anchors of each object."""
    mask = torch.zeros(len(wanted) * anchors, dtype=torch.bool, device=wanted.device)
    mask = mask.scatter_(0, ranking.anchor, ranking.rank < wanted.flatten()[ranking.slot])
    return mask.view(len(wanted), anchors)


def best_qualities(ranking: Ranking, most: int, shape: torch.Size) -> Tensor:
    """(B, M + 1, most) the highest qualities of each object, falling, padded by 0."""
    rows = ranking.quality.new_zeros(shape.numel() * most + 1)
    place = torch.where(ranking.rank < most, ranking.slot * most + ranking.rank, len(rows) - 1)
    return rows.scatter_(0, place, ranking.quality)[:-1].view(*shape, most)


def _candidates(slot: Tensor, claims: Claims, most: Tensor) -> Tensor:
    """(N,) flat indices of the anchors (B, A) worth sorting: all, or on a CPU those that may be
    among the best `most` of their object."""
    if torch.compiler.is_compiling() or slot.device.type != "cpu":
        # How many there are is known to the device alone; sorting them all does not ask.
        return torch.arange(slot.numel(), device=slot.device)
    bucket = (claims.quality * (BUCKETS - 1)).long()
    count = _count(slot * BUCKETS + bucket, most.shape[1] * BUCKETS)
    from_top = count.view(*most.shape, BUCKETS).flip(-1).cumsum(-1)
    # The lowest bucket to look at is the first, from the top, with which there are enough.
    enough = (from_top < most.unsqueeze(-1)).sum(-1)
    lowest = torch.where(most > 0, BUCKETS - 1 - enough, BUCKETS)
    return (bucket >= lowest.gather(1, slot)).flatten().nonzero().squeeze(1)


def _count(slot: Tensor, slots: int) -> Tensor:
    """(B, slots) how often each value of slot (B, A) occurs."""
    counts = slot.new_zeros(slot.shape[0], slots)
    return counts.scatter_add_(1, slot, torch.ones_like(slot))


def _order(slot: Tensor, quality: Tensor) -> Tensor:
    """(N,) by slot, then by falling quality, then by index."""
    if quality.dtype == torch.float32:
        # The bits of non-negative floats are ordered as they are: both keys fit one integer.
        return ((slot << 32) - quality.view(torch.int32)).sort(dim=0, stable=True).indices
    by_quality = quality.sort(dim=0, descending=True, stable=True).indices
    return by_quality[slot[by_quality].sort(dim=0, stable=True).indices]
