"""Mutual Guidance, soft (the authors' code of 2021-2023): qualities are targets and weights.

Classification ranks by R, the IoU of the regressed boxes, and learns R itself. Localization ranks
by min(1, A exp(p / sigma)), the amplified static IoU, and is weighted by it. In each task, the
number of anchors that an object gets follows from its best qualities.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..options import MutualGuidanceSoftOptions
from .base import (
    BACKGROUND,
    Assigner,
    Assignment,
    StaticPart,
    require_strides,
    spare_background,
)
from .best_object import Matches, anchor_blocks, best_object, join_blocks, match_best
from .inputs import AssignInputs
from .iou import centre_near, pairwise_iou
from .per_object_topk import rank_per_object, topk_mask, topk_qualities
from .scaled_targets import scaled_targets


@dataclass(frozen=True)
class MutualGuidanceSoft(Assigner, MutualGuidanceSoftOptions):
    """Takes k = floor(sum of an object's `topk` highest qualities) anchors, at least one or
    `min_positives`.

    With the guidance of a task switched off, that task ranks, counts and weights by the static IoU;
    so do both before `static_fraction` of the training. With `scaled_targets`, the positives of
    each task have the targets of TaskAligned after that. With `centre_radius`, which needs
    `anchor_strides`, only anchors near an object's centre or inside it are matched with it. Plain
    loop version: `loops.mutual_guidance_soft`.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre_radius > 0:
            require_strides("mutual_guidance_soft with centre_radius", self.anchor_strides)

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign each task by its own quality. None is forced, and none ignored but by
        `spare_iou`."""
        num_objects = inputs.labels.shape[1]
        by_cls, by_loc, iou = self._match(inputs)
        cls_index, cls_quality = self._dynamic_topk(by_cls, num_objects)  # (B, A) each
        loc_index, loc_weight = self._dynamic_topk(by_loc, num_objects)  # (B, A) each
        if self.scaled_targets and inputs.progress >= self.static_fraction:
            cls_quality = scaled_targets(inputs, cls_index, cls_quality)  # (B, A)
            loc_weight = scaled_targets(inputs, loc_index, loc_weight)  # (B, A)
        cls_index = spare_background(cls_index, iou, self.spare_iou)
        return Assignment(cls_index, cls_quality, loc_index, loc_weight)

    def _match(self, inputs: AssignInputs) -> tuple[Matches, Matches, Tensor]:
        """Match each anchor with its best object, by the quality of each task.

        Also return the highest IoU that is the quality of classification, near an object or not,
        of each anchor (B, A).
        """
        objects, static = inputs.objects, inputs.static
        guides_cls, guides_loc = self.guidance(inputs.progress)
        boxes = inputs.regressed() if guides_cls else static
        reach = self._reach(static.x1)
        cls_blocks, loc_blocks, ious = [], [], []
        for block in anchor_blocks(inputs.labels, len(inputs.anchors)):
            # Classification: IoU of the regressed box.
            cls_quality = pairwise_iou(objects, boxes.select(block))  # (B, M, n)
            # Localization: IoU of the static anchor, amplified by the score.
            loc_quality = pairwise_iou(objects, static.select(block))  # (B, M, n)
            if guides_loc:
                score = inputs.class_scores(block)  # (B, M, n)
                loc_quality = score.div_(self.sigma).exp_().mul_(loc_quality).clamp_(max=1.0)
            if reach is not None:
                if self.spare_iou > 0:
                    ious.append(cls_quality.amax(1))  # (B, n)
                near = centre_near(objects, static.select(block), reach[block])  # (B, M, n)
                cls_quality, loc_quality = cls_quality.mul_(near), loc_quality.mul_(near)
            cls_blocks.append(best_object(cls_quality))
            loc_blocks.append(best_object(loc_quality))
        by_cls, by_loc = match_best(join_blocks(cls_blocks)), match_best(join_blocks(loc_blocks))
        return by_cls, by_loc, torch.cat(ious, 1) if ious else by_cls.quality

    def _reach(self, like: Tensor) -> Tensor | None:
        """Return how far from an object's centre the centre of each anchor may be, (A,), in dtype
        and device of `like`; None without limit."""
        if self.centre_radius == 0 or self.anchor_strides is None:
            return None
        return self.anchor_strides.to(like) * self.centre_radius  # (A,)

    def _dynamic_topk(self, matches: Matches, num_objects: int) -> tuple[Tensor, Tensor]:
        """Return object and quality, (B, A) each, of the anchors that one task learns."""
        batch, num_anchors = matches.gt_index.shape
        # The best anchors of each object; none of "no object".
        ranked = max(self.topk, self.min_positives)
        topk = matches.gt_index.new_full((batch, num_objects + 1), ranked)  # (B, M + 1)
        topk[:, num_objects] = 0
        ranking = rank_per_object(matches, topk)
        # The summed quality of the `topk` best is the number of anchors that are taken.
        qualities = topk_qualities(ranking, self.topk, topk.shape)  # (B, M + 1, topk)
        k = qualities.sum(-1).long().clamp(min=max(1, self.min_positives))  # (B, M + 1)
        positive = topk_mask(ranking, torch.where(topk > 0, k, 0), num_anchors)  # (B, A)
        gt_index = torch.where(positive, matches.gt_index, BACKGROUND)
        return gt_index, torch.where(positive, matches.quality, 0.0)
