"""Mutual Guidance as published (Zhang et al., ACCV 2020): each task chooses for the other.

The regressed boxes choose which anchors learn to classify (localize to classify); the class scores,
through the amplified IoU, choose which anchors learn to regress (classify to localize). How many
anchors an object gets is fixed by the static anchors.

For object g and anchor i, as in the paper:

    A = IoU(g, anchor i)            R = IoU(g, box regressed from i)
    p = score of i for g's class    Q = A^((sigma - p) / sigma)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import MutualGuidanceOptions
from .base import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    StaticPart,
    hard_assignment,
    spare_background,
)
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
from .iou import Corners, pairwise_iou
from .max_iou import match_by_iou
from .per_object_topk import count_per_object, rank_per_object, topk_mask


@dataclass(frozen=True)
class MutualGuidance(Assigner, MutualGuidanceOptions):
    """Takes an object's best anchors, by predicted box to classify and by score to regress.

    With the guidance of a task switched off, that task uses A, as max-IoU does; so do both before
    `static_fraction` of the training. Plain loop version: `loops.mutual_guidance`.
    """

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign by the four steps of the paper."""
        num_objects, num_anchors = inputs.labels.shape[1], len(inputs.anchors)

        # Step 1: each anchor stays with its best object, separately by A, R and Q.
        by_a = (static or self.assign_static(inputs)).result  # (B, A)
        assert isinstance(by_a, Matches)
        by_r, by_q, iou = self._match(inputs, by_a)

        # Step 2: A fixes how many anchors of each object are positive, and positive or ignored.
        n_pos = self._count_positives(by_a, num_objects)  # (B, M + 1)
        n_ign = count_per_object(by_a, self.ignore_threshold, num_objects)  # (B, M + 1)
        n_ign = torch.maximum(n_ign, n_pos)

        # Step 3, localize to classify: the n_pos best by R are positive, the rest of the n_ign best
        # are ignored, all others are background.
        ranking = rank_per_object(by_r, n_ign)
        positive = topk_mask(ranking, n_pos, num_anchors)  # (B, A)
        positive_or_ignored = topk_mask(ranking, n_ign, num_anchors)  # (B, A)
        cls_index = torch.where(positive_or_ignored, IGNORED, BACKGROUND)
        cls_index = torch.where(positive, by_r.gt_index, cls_index)
        cls_index = spare_background(cls_index, iou, self.spare_iou)

        # Step 4, classify to localize: the n_pos best by Q regress.
        ranking = rank_per_object(by_q, n_pos)
        positive = topk_mask(ranking, n_pos, num_anchors)  # (B, A)
        loc_index = torch.where(positive, by_q.gt_index, BACKGROUND)

        return hard_assignment(cls_index, loc_index, inputs.dtype)

    def _count_positives(self, by_a: Matches, num_objects: int) -> Tensor:
        """Return each object's number of positives, (B, M + 1); the last column is 0."""
        n_pos = count_per_object(by_a, self.pos_threshold, num_objects)  # (B, M + 1)
        if self.min_positives == 0:
            return n_pos
        available = count_per_object(by_a, 0.0, num_objects)  # (B, M + 1)
        return torch.maximum(n_pos, available.clamp(max=self.min_positives))

    def _match(self, inputs: AssignInputs, by_a: Matches) -> tuple[Matches, Matches, Tensor]:
        """Match each anchor with an object by R and Q, after forcing each object's best anchor.

        For a task without guidance, the matches are those by A. Also return the highest R of each
        anchor (B, A), or its quality by A.
        """
        objects, static, regressed = inputs.objects, inputs.static, inputs.regressed()
        best_r, best_q = self._best_objects(inputs, regressed)

        by_r = by_q = by_a
        iou = by_a.quality if best_r is None else best_r.quality  # (B, A)
        if best_r is not None:
            group = best_group(best_r)  # (B, M, 64)
            r = pairwise_iou(objects, regressed.select(group))  # (B, M, 64)
            by_r = match_forced(best_r, group, r)
        if best_q is not None:
            group = best_group(best_q)  # (B, M, 64)
            a = pairwise_iou(objects, static.select(group))  # (B, M, 64)
            log_q = _log_amplified(a, inputs.class_scores(group), self.sigma)  # (B, M, 64)
            by_q = match_forced(best_q, group, log_q)
        return by_r, by_q, iou

    def _best_objects(
        self, inputs: AssignInputs, regressed: Corners
    ) -> tuple[BestObject | None, BestObject | None]:
        """Return the best object of each anchor by R and Q; None for a task without guidance.

        The qualities (B, M, n) are computed for a block of n anchors at a time.
        """
        objects, static = inputs.objects, inputs.static
        guides_cls, guides_loc = self.guidance(inputs.progress)
        blocks_r, blocks_q = [], []
        for block in anchor_blocks(inputs.labels, len(inputs.anchors)):
            if guides_cls:
                r = pairwise_iou(objects, regressed.select(block))  # (B, M, n)
                blocks_r.append(best_object(r))
            if guides_loc:
                a = pairwise_iou(objects, static.select(block))  # (B, M, n)
                log_q = _log_amplified(a, inputs.class_scores(block), self.sigma)  # (B, M, n)
                blocks_q.append(best_object(log_q))
        best_r = join_blocks(blocks_r) if guides_cls else None
        best_q = _exp_amplified(join_blocks(blocks_q), self.sigma) if guides_loc else None
        return best_r, best_q

    def assign_static(self, inputs: AssignInputs) -> StaticPart:
        """Return the matches by A, and as positives of both tasks the sum of n_pos.

        Fewer anchors are assigned only where almost no regressed box overlaps an object.
        """
        by_a = match_by_iou(inputs)
        positives = self._count_positives(by_a, inputs.labels.shape[1]).sum()  # ()
        return StaticPart(positives.to(by_a.quality.dtype).repeat(2), by_a)


def _log_amplified(iou: Tensor, score: Tensor, sigma: float) -> Tensor:
    """Return sigma log2(Q), in the memory of `score`; minus infinity where Q is 0. All (B, M, n).

    In the order of Q, for the price of a logarithm instead of a power.
    """
    # The logarithm of 0 is slow on CPUs, so its infinity is made by a division by 0.
    log = iou.clamp(min=torch.finfo(iou.dtype).tiny).log2_()
    return log.mul_(score.neg_().add_(sigma)).div_(iou.sign())


def _exp_amplified(best: BestObject, sigma: float) -> BestObject:
    """Return the qualities Q of the reduced sigma log2(Q)."""
    return best._replace(
        quality=(best.quality / sigma).exp2_(), group_max=(best.group_max / sigma).exp2_()
    )
