"""The best anchors of each object, after each anchor was matched with one object.

Since an anchor then has one object and one quality, ranking within objects is one sort over
anchors, not a top-k for each object. On a CPU even that sort takes most of an assignment, so
anchors that cannot be among the best k are dropped first, by counting qualities in buckets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .best_object import Matches

BUCKETS = 32


class Ranking(NamedTuple):
    """Candidates of all images in one list of N, by segment, best first."""

    anchor: Tensor
    """(N,) image x A + anchor."""
    segment: Tensor
    """(N,) image x (M + 1) + object; object M stands for no object."""
    rank: Tensor
    """(N,) number of better candidates in the segment; among equals, the lower anchor is better."""
    quality: Tensor
    """(N,)"""


def count_per_object(matches: Matches, threshold: float, num_objects: int) -> Tensor:
    """Return each object's number of anchors of at least this quality, (B, M + 1).

    The last column, of no object, is 0.
    """
    counted = (matches.gt_index >= 0) & (matches.quality >= threshold)
    counts = _count(torch.where(counted, matches.gt_index, num_objects), num_objects + 1)
    counts[:, num_objects] = 0
    return counts


def rank_per_object(matches: Matches, max_k: Tensor) -> Ranking:
    """Rank the anchors of each object; at least the best `max_k` (B, M + 1) of each are ranked."""
    batch, slots = max_k.shape
    # Drop anchors that are not among the best.
    slot = torch.where(matches.gt_index >= 0, matches.gt_index, slots - 1)  # (B, A)
    candidates = _candidates(slot, matches.quality, max_k)  # (N,)
    # Sort by segment, then by falling quality.
    offset = torch.arange(batch, device=slot.device).unsqueeze(1) * slots  # (B, 1)
    segment = (slot + offset).flatten()[candidates]  # (N,)
    quality = matches.quality.flatten()[candidates]  # (N,)
    order = _sort(segment, quality)  # (N,)
    segment = segment[order]
    # The rank is the distance from the start of the segment.
    counts = _count(segment.unsqueeze(0), batch * slots).squeeze(0)  # (B x (M + 1),)
    start = counts.cumsum(0) - counts
    rank = torch.arange(len(segment), device=segment.device) - start[segment]  # (N,)
    return Ranking(candidates[order], segment, rank, quality[order])


def topk_mask(ranking: Ranking, k: Tensor, num_anchors: int) -> Tensor:
    """Return the mask (B, A) of the best `k` (B, M + 1) anchors of each object."""
    mask = torch.zeros(len(k) * num_anchors, dtype=torch.bool, device=k.device)  # (B x A,)
    mask = mask.scatter_(0, ranking.anchor, ranking.rank < k.flatten()[ranking.segment])
    return mask.view(len(k), num_anchors)  # (B, A)


def topk_qualities(ranking: Ranking, k: int, shape: torch.Size) -> Tensor:
    """Return the k highest qualities per object, falling, padded by 0: (B, M + 1, k).

    `shape` is (B, M + 1).
    """
    # The extra entry at the end takes the candidates of lower rank.
    values = ranking.quality.new_zeros(shape.numel() * k + 1)
    target = torch.where(ranking.rank < k, ranking.segment * k + ranking.rank, len(values) - 1)
    return values.scatter_(0, target, ranking.quality)[:-1].view(*shape, k)  # (B, M + 1, k)


def _candidates(slot: Tensor, quality: Tensor, max_k: Tensor) -> Tensor:
    """Return flat indices (N,) of the anchors (B, A) to sort: all of them, or on a CPU those that
    may be among the best `max_k` of their object."""
    if torch.compiler.is_compiling() or slot.device.type != "cpu":
        # Their number would have to be read from the device; sorting all needs no synchronisation.
        return torch.arange(slot.numel(), device=slot.device)  # (B x A,)
    # Anchors of each object per bucket of quality, and how many are in a bucket or above it.
    bucket = (quality * (BUCKETS - 1)).long()  # (B, A)
    count = _count(slot * BUCKETS + bucket, max_k.shape[1] * BUCKETS)  # (B, (M + 1) x BUCKETS)
    from_top = count.view(*max_k.shape, BUCKETS).flip(-1).cumsum(-1)  # (B, M + 1, BUCKETS)
    # The lowest bucket needed is the first from the top that completes max_k anchors.
    above = (from_top < max_k.unsqueeze(-1)).sum(-1)  # (B, M + 1)
    lowest = torch.where(max_k > 0, BUCKETS - 1 - above, BUCKETS)
    return (bucket >= lowest.gather(1, slot)).flatten().nonzero().squeeze(1)  # (N,)


def _count(slot: Tensor, slots: int) -> Tensor:
    """Return how often each value below `slots` occurs in slot (B, A): (B, slots)."""
    counts = slot.new_zeros(slot.shape[0], slots)
    return counts.scatter_add_(1, slot, torch.ones_like(slot))


def _sort(segment: Tensor, quality: Tensor) -> Tensor:
    """Return the order (N,) by segment, then by falling quality, then by index."""
    if quality.dtype == torch.float32:
        # The bits of non-negative floats have the order of the floats: both keys fit one integer.
        return ((segment << 32) - quality.view(torch.int32)).sort(dim=0, stable=True).indices
    by_quality = quality.sort(dim=0, descending=True, stable=True).indices
    return by_quality[segment[by_quality].sort(dim=0, stable=True).indices]
