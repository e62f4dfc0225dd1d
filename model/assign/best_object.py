"""The best object of each anchor: step 1 of Mutual Guidance, and all of max-IoU.

The qualities of all pairs of objects and anchors are never in memory at once. An assigner computes
them for a block of anchors at a time and reduces each block immediately, so memory is bounded and a
block stays in a CPU's cache:

    blocks = []
    for block in anchor_blocks(labels, num_anchors):
        iou = pairwise_iou(objects, anchors.select(block))
        blocks.append(best_object(iou))
    best = join_blocks(blocks)

To force an object's best anchor, that anchor must be found. The reduced blocks only tell in which
group of 64 anchors it is, so the qualities of this group are computed a second time:

    group = best_group(best)
    matches = match_forced(best, group, pairwise_iou(objects, anchors.select(group)))
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Qualities per block. Eager on a CPU: few enough to stay in its cache from pass to pass, enough to
# outweigh the start of each pass (2^18 was fastest of 2^14 to 2^19). Eager elsewhere: each pass is
# a launch, so 16 images of 320 px with 20 objects are one block, and with 500 they are 25.
# Compiled, where passes are fused: only memory matters, and every block lengthens the graph.
CPU_BLOCK = 1 << 18
DEVICE_BLOCK = 1 << 22
COMPILED_BLOCK = 1 << 25
# Anchors of a group. The maximum over each group is kept, to find an object's best anchor later.
GROUP = 64


class BestObject(NamedTuple):
    """The best object of each anchor, and the best quality of each object per group of anchors."""

    gt_index: Tensor
    """(B, A) object of the highest quality, the lowest index among equals."""
    quality: Tensor
    """(B, A) that quality."""
    group_max: Tensor
    """(B, M, G) highest quality of an object in anchors [g * GROUP, (g + 1) * GROUP)."""


class Matches(NamedTuple):
    """The object that each anchor is matched with, and the anchor's quality for it."""

    gt_index: Tensor
    """(B, A), -1 where all qualities are 0."""
    quality: Tensor
    """(B, A)"""


def anchor_blocks(labels: Tensor, num_anchors: int) -> Iterator[slice]:
    """Yield ranges of n anchors in whole groups, so that (B, M, n) qualities are one block.

    `labels` (B, M) are those of the objects.
    """
    budget = CPU_BLOCK if labels.device.type == "cpu" else DEVICE_BLOCK
    if torch.compiler.is_compiling():
        budget = COMPILED_BLOCK
    size = GROUP * max(1, budget // (labels.numel() * GROUP))
    return (slice(start, min(start + size, num_anchors)) for start in range(0, num_anchors, size))


def best_object(quality: Tensor) -> BestObject:
    """Reduce the qualities (B, M, n) of a block over its objects.

    Any quality that is higher for better anchors will do, whatever its scale.
    """
    # Over objects: the best one of each anchor.
    best, gt_index = first_max(quality, 1)  # (B, 1, n) each
    # Over groups of anchors: the best quality of each object.
    missing = -quality.shape[2] % GROUP
    padded = functional.pad(quality, (0, missing), value=-torch.inf) if missing else quality
    group_max = padded.unflatten(2, (-1, GROUP)).amax(3)  # (B, M, n / GROUP)
    return BestObject(gt_index.squeeze(1), best.squeeze(1), group_max)


def join_blocks(blocks: Sequence[BestObject]) -> BestObject:
    """Return the reduced blocks (B, n) of all anchors as one (B, A)."""
    return BestObject(*(torch.cat(parts, -1) for parts in zip(*blocks, strict=True)))


def match_best(best: BestObject) -> Matches:
    """Match each anchor with its best object; one of quality 0 with none."""
    return Matches(torch.where(best.quality > 0, best.gt_index, -1), best.quality)


def best_group(best: BestObject) -> Tensor:
    """Return the anchors of the group that contains each object's best anchor, (B, M, GROUP)."""
    _, group = first_max(best.group_max, 2)  # (B, M, 1)
    anchors = group * GROUP + torch.arange(GROUP, device=group.device)  # (B, M, GROUP)
    return anchors.clamp(max=best.gt_index.shape[1] - 1)


def match_forced(best: BestObject, group: Tensor, group_quality: Tensor) -> Matches:
    """Match as `match_best`, after each object's best anchor is set to quality 1.

    `group_quality` (B, M, GROUP) are the qualities of the anchors `group` from `best_group`. Equal
    qualities go to the lowest anchor and to the lowest object.
    """
    batch, num_anchors = best.gt_index.shape
    num_objects = best.group_max.shape[1]
    # The best anchor of each object; objects that overlap none get the extra index A.
    best_anchor = group.gather(2, first_max(group_quality, 2)[1])  # (B, M, 1)
    has_anchor = best.group_max.amax(2, keepdim=True) > 0  # (B, M, 1)
    best_anchor = torch.where(has_anchor, best_anchor, num_anchors).squeeze(2)  # (B, M)
    # The lowest object that forces each anchor; M where none does.
    index = torch.arange(num_objects, device=best_anchor.device).expand(batch, -1)  # (B, M)
    forced = best_anchor.new_full((batch, num_anchors + 1), num_objects)
    forced = forced.scatter_reduce_(1, best_anchor, index, "amin")[:, :num_anchors]  # (B, A)
    is_forced = forced < num_objects
    # An object that fits an anchor exactly has quality 1 there without being forced.
    exact = torch.where(best.quality >= 1, best.gt_index, num_objects)
    unforced = match_best(best)
    gt_index = torch.where(is_forced, torch.minimum(forced, exact), unforced.gt_index)
    return Matches(gt_index, torch.where(is_forced, 1.0, unforced.quality))


def first_max(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the maximum along a dimension and the lowest index that has it; the dimension stays,
    with size 1.

    `torch.max` does the same, but with indices it is not vectorised on CPUs and takes several times
    as long. Exact up to 2^23 entries, where float32 stops counting.
    """
    best = x.amax(dim, keepdim=True)  # (..., 1, ...)
    size = x.shape[dim]
    position = torch.arange(size, dtype=x.dtype, device=x.device)
    position = position.view([-1 if axis == dim else 1 for axis in range(x.ndim)])
    # 0 at the maximum, -1 elsewhere: adding the size there leaves the first maximum lowest.
    elsewhere = (x - best).sign_()
    index = torch.add(position, elsewhere, alpha=-size).amin(dim, keepdim=True)  # (..., 1, ...)
    # Where all are minus infinity, the difference is NaN.
    return best, index.nan_to_num_(nan=0.0).long()
