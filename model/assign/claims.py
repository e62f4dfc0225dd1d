"""Which object each anchor belongs to, and how anchors rank within their object.

Step 1 of Mutual Guidance and all of max-IoU: each object's best anchor gets quality 1, then each
anchor stays only with its best object. From then on an anchor has one object and one quality, so
ranking anchors within objects is one sort of (B, A) instead of a top-k for each object.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Objects taken at a time: bounds memory by B x 8 x A, however many objects an image has.
CHUNK = 8


class Claims(NamedTuple):
    """Each anchor's object and its quality there. Both (B, A)."""

    owner: Tensor
    """Index of the object, -1 where all qualities are zero."""
    quality: Tensor


def no_claims(batch: int, anchors: int, like: Tensor) -> Claims:
    """Claims (B, A) of an image without objects."""
    owner = torch.full((batch, anchors), -1, dtype=torch.int64, device=like.device)
    return Claims(owner, torch.zeros(batch, anchors, dtype=like.dtype, device=like.device))


def chunks(objects: int) -> Iterator[slice]:
    """Slices that cover the objects, a chunk at a time."""
    return (slice(start, start + CHUNK) for start in range(0, objects, CHUNK))


def add_claims(claims: Claims, quality: Tensor, first: int) -> Claims:
    """Claims after objects first, first + 1, ... of qualities (B, m, A), which is changed.

    Equal qualities go to the lowest anchor and to the lowest object. Quality 0 is never chosen.
    """
    best, anchor = _first_max(quality, dim=2)
    quality.scatter_(2, anchor, torch.where(best > 0, 1.0, best))
    value, index = (x.squeeze(1) for x in _first_max(quality, dim=1))
    better = value > claims.quality
    return Claims(
        torch.where(better, index + first, claims.owner),
        torch.where(better, value, claims.quality),
    )


def _first_max(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Maximum along a dimension, which stays with size 1, and the lowest index that has it.

    `torch.max` says the same but is not vectorised on CPUs when asked for indices: four times as
    long. Exact up to 2^23 entries, where float32 stops counting.
    """
    best = x.amax(dim, keepdim=True)
    size = x.shape[dim]
    position = torch.arange(size, dtype=x.dtype, device=x.device)
    position = position.view([-1 if axis == dim else 1 for axis in range(x.ndim)])
    # 0 where the maximum is, -1 elsewhere: all others are moved behind every true position.
    elsewhere = (x - best).sign_()
    index = elsewhere.mul_(-size).add_(position).amin(dim, keepdim=True)
    return best, index.long()


def count_per_object(claims: Claims, threshold: float, objects: int) -> Tensor:
    """(B, M + 1) anchors of at least this quality per object; the last column is zero."""
    counted = (claims.owner >= 0) & (claims.quality >= threshold)
    slot = torch.where(counted, claims.owner, objects)
    counts = _count_slots(slot, objects)
    counts[:, objects] = 0
    return counts


def rank_in_object(claims: Claims, objects: int) -> Tensor:
    """(B, A) rank of each anchor among those of its object, best first; equals by index."""
    slot = torch.where(claims.owner >= 0, claims.owner, objects)
    order = _order(slot, claims.quality)
    counts = _count_slots(slot, objects)
    start = counts.cumsum(1) - counts
    position = torch.arange(slot.shape[1], device=slot.device)
    rank = position - start.gather(1, slot.gather(1, order))
    return torch.empty_like(rank).scatter_(1, order, rank)


def _count_slots(slot: Tensor, objects: int) -> Tensor:
    """(B, M + 1) how often each value of slot (B, A) occurs."""
    counts = slot.new_zeros(slot.shape[0], objects + 1)
    return counts.scatter_add_(1, slot, torch.ones_like(slot))


def _order(slot: Tensor, quality: Tensor) -> Tensor:
    """(B, A) anchors by slot, then by falling quality, then by index."""
    if quality.dtype == torch.float32:
        # The bits of non-negative floats are ordered as they are: both keys fit one integer.
        key = (slot << 32) - quality.view(torch.int32)
        return key.sort(dim=1, stable=True).indices
    by_quality = quality.sort(dim=1, descending=True, stable=True).indices
    by_slot = slot.gather(1, by_quality).sort(dim=1, stable=True).indices
    return by_quality.gather(1, by_slot)
