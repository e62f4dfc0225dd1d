"""Which object each anchor belongs to: the one of highest quality.

Step 1 of Mutual Guidance and all of max-IoU. Qualities of all pairs of objects and anchors are
never held at once: they are made for a block of anchors at a time and reduced on the spot, so that
memory stays bounded and a CPU's cache holds a block.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .iou import Where

# Qualities of one block. Eager on a CPU: few enough to stay in its cache from pass to pass, enough
# to outweigh the start of each pass (2^18 was fastest of 2^14 to 2^19). Eager elsewhere: each pass
# is a launch, so that 16 images of 320 px with 20 objects are one block, and with 500 they are 25.
# Compiled, where passes are fused: only memory counts, and every block lengthens the graph.
CPU_BLOCK = 1 << 18
DEVICE_BLOCK = 1 << 22
COMPILED_BLOCK = 1 << 25
# Anchors whose best quality per object is remembered, to find an object's best anchor afterwards.
GROUP = 64


class Contest(NamedTuple):
    """The best object of each anchor, and each object's best quality among groups of anchors."""

    owner: Tensor
    """(B, A) lowest object of the highest quality."""
    quality: Tensor
    """(B, A) that quality."""
    peaks: Tensor
    """(B, M, G) each object's highest quality in anchors [g * GROUP, (g + 1) * GROUP)."""


class Claims(NamedTuple):
    """Each anchor's object and its quality there. Both (B, A)."""

    owner: Tensor
    """Index of the object, -1 where all qualities are zero."""
    quality: Tensor


def hold_contests(
    qualities: Callable[[Where], Sequence[Tensor]], labels: Tensor, anchors: int
) -> list[Contest]:
    """One contest for each of the qualities (B, M, n) that the function makes of n anchors.

    `labels` (B, M) are those of the objects. A quality that is higher for better anchors will do,
    whatever its scale.
    """
    blocks = [
        [_reduce(quality) for quality in qualities(part)] for part in _blocks(labels, anchors)
    ]
    return [
        Contest(*(torch.cat(pieces, -1) for pieces in zip(*contest, strict=True)))
        for contest in zip(*blocks, strict=True)
    ]


def claim(contest: Contest) -> Claims:
    """Each anchor with its best object; an anchor of quality 0 with none."""
    return Claims(torch.where(contest.quality > 0, contest.owner, -1), contest.quality)


def claim_and_force(contest: Contest, quality: Callable[[Tensor], Tensor]) -> Claims:
    """The same, after each object's best anchor was given quality 1.

    Equal qualities go to the lowest anchor and to the lowest object. `quality` makes those of
    anchors (B, M, k) picked for each object.
    """
    batch, anchors = contest.owner.shape
    objects = contest.peaks.shape[1]
    best, group = first_max(contest.peaks, 2)
    near = group * GROUP + torch.arange(GROUP, device=group.device)
    near = near.clamp(max=anchors - 1)
    anchor = near.gather(2, first_max(quality(near), 2)[1])
    # The slot behind the last anchor takes objects that overlap none.
    slot = torch.where(best > 0, anchor, anchors).squeeze(2)
    index = torch.arange(objects, device=slot.device).expand(batch, -1)
    forced = slot.new_full((batch, anchors + 1), objects)
    forced = forced.scatter_reduce_(1, slot, index, "amin")[:, :anchors]
    is_forced = forced < objects
    # An object that an anchor fits exactly has quality 1 there without being forced.
    rival = torch.where(contest.quality >= 1, contest.owner, objects)
    free = claim(contest)
    owner = torch.where(is_forced, torch.minimum(forced, rival), free.owner)
    return Claims(owner, torch.where(is_forced, 1.0, free.quality))


def first_max(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Maximum along a dimension, which stays with size 1, and the lowest index that has it.

    `torch.max` says the same but is not vectorised on CPUs when asked for indices: several times as
    long. Exact up to 2^23 entries, where float32 stops counting.
    """
    best = x.amax(dim, keepdim=True)
    size = x.shape[dim]
    position = torch.arange(size, dtype=x.dtype, device=x.device)
    position = position.view([-1 if axis == dim else 1 for axis in range(x.ndim)])
    # 0 where the maximum is, -1 elsewhere: all others are moved behind every true position.
    elsewhere = (x - best).sign_()
    index = torch.add(position, elsewhere, alpha=-size).amin(dim, keepdim=True)
    # Minus infinity everywhere differs from itself by NaN.
    return best, index.nan_to_num_(nan=0.0).long()


def _reduce(quality: Tensor) -> Contest:
    """Contest of one block (B, M, n)."""
    best, owner = first_max(quality, 1)
    missing = -quality.shape[2] % GROUP
    padded = functional.pad(quality, (0, missing), value=-torch.inf) if missing else quality
    peaks = padded.unflatten(2, (-1, GROUP)).amax(3)
    return Contest(owner.squeeze(1), best.squeeze(1), peaks)


def _blocks(labels: Tensor, anchors: int) -> Iterator[slice]:
    """Ranges that cover the anchors, each of whole groups; for all objects they fit the budget."""
    budget = CPU_BLOCK if labels.device.type == "cpu" else DEVICE_BLOCK
    if torch.compiler.is_compiling():
        budget = COMPILED_BLOCK
    size = GROUP * max(1, budget // (labels.numel() * GROUP))
    return (slice(start, min(start + size, anchors)) for start in range(0, anchors, size))
