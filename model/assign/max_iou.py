"""The baseline of anchor-based detectors: an anchor learns the object it overlaps most."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..options import MaxIoUOptions
from .base import BACKGROUND, IGNORED, Assigner, Assignment, StaticPart, hard_assignment
from .best_object import (
    BestObject,
    Matches,
    anchor_blocks,
    best_group,
    best_object,
    join_blocks,
    match_forced,
)
from .inputs import AssignInputs
from .iou import pairwise_iou


@dataclass(frozen=True)
class MaxIoU(Assigner, MaxIoUOptions):
    """Positive from one IoU on, ignored from another; each object's best anchor is forced.

    Plain loop version: `loops.max_iou`.
    """

    uses_predictions: ClassVar[bool] = False

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign both tasks by the IoU of the static anchors."""
        if static is not None:
            assert isinstance(static.result, Assignment)
            return static.result
        # Each anchor stays with its best object.
        matches = match_by_iou(inputs)
        is_matched = matches.gt_index >= 0

        # Positive, ignored or background by its IoU with that object.
        positive = is_matched & (matches.quality >= self.pos_threshold)
        positive_or_ignored = is_matched & (matches.quality >= self.ignore_threshold)
        loc_index = torch.where(positive, matches.gt_index, BACKGROUND)
        cls_index = torch.where(positive_or_ignored & ~positive, IGNORED, loc_index)
        return hard_assignment(cls_index, loc_index, inputs.dtype)

    def assign_static(self, inputs: AssignInputs) -> StaticPart:
        """Return the assignment, all of which is static."""
        assigned = self.assign(inputs)
        return StaticPart(assigned.loc_weight.sum().repeat(2), assigned)


def match_by_iou(inputs: AssignInputs) -> Matches:
    """Match each anchor (B, A) with an object by IoU, after forcing each object's best anchor."""
    best = _best_object_by_iou(inputs)
    group = best_group(best)  # (B, M, 64)
    iou = pairwise_iou(inputs.objects, inputs.static.select(group))  # (B, M, 64)
    return match_forced(best, group, iou)


def _best_object_by_iou(inputs: AssignInputs) -> BestObject:
    """Return the best object of each anchor (B, A), for a block of n anchors at a time."""
    objects, blocks = inputs.objects, []
    for block in anchor_blocks(inputs.labels, len(inputs.anchors)):
        iou = pairwise_iou(objects, inputs.static.select(block))  # (B, M, n)
        blocks.append(best_object(iou))
    return join_blocks(blocks)
