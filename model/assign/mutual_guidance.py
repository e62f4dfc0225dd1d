"""Mutual Guidance as published (Zhang et al., ACCV 2020): each task chooses for the other.

The regressed boxes choose which anchors learn to classify (localize to classify); the class scores,
through the amplified overlap, choose which anchors learn to regress (classify to localize). How
many anchors an object gets is fixed by the static anchors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..boxes import box_iou
from .claims import (
    Claims,
    add_claims,
    chunks,
    count_per_object,
    no_claims,
    rank_in_object,
)
from .max_iou import count_by_iou
from .types import (
    BACKGROUND,
    IGNORED,
    Assignment,
    blank_padding,
    check_thresholds,
    finite_boxes,
    hard_assignment,
    working_dtype,
)


@dataclass(frozen=True)
class MutualGuidance:
    """Ranks an object's anchors by predicted box and by predicted score, and takes the best."""

    sigma: float = 2.0
    pos_threshold: float = 0.5
    ignore_threshold: float = 0.4
    uses_predictions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_thresholds(self.pos_threshold, self.ignore_threshold)
        if not self.sigma > 1:
            raise ValueError(f"sigma is {self.sigma}; it must be above 1, the highest score")

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """See `Assigner`."""
        assert pred_boxes is not None and pred_scores is not None
        static, regressed, amplified = self._claims(
            anchors, gt_boxes, gt_labels, pred_boxes, pred_scores
        )
        objects = gt_labels.shape[1]
        positives = count_per_object(static, self.pos_threshold, objects)
        ignored = count_per_object(static, self.ignore_threshold, objects)
        learns_to_classify, spared = _select(regressed, objects, positives, ignored)
        learns_to_regress, _ = _select(amplified, objects, positives, positives)
        cls_index = torch.where(learns_to_classify, regressed.owner, BACKGROUND)
        cls_index = torch.where(spared, IGNORED, cls_index)
        loc_index = torch.where(learns_to_regress, amplified.owner, BACKGROUND)
        return hard_assignment(cls_index, loc_index, static.quality.dtype)

    @torch.no_grad()
    def expected_positives(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
        """(2,) positives of both tasks, n_pos summed; fewer anchors are found only where almost no
        regressed box meets an object."""
        return count_by_iou(anchors, gt_boxes, gt_labels, self.pos_threshold).repeat(2)

    def _claims(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor,
        pred_scores: Tensor,
    ) -> tuple[Claims, Claims, Claims]:
        """Claims (B, A) by the paper's A (static IoU), R (regressed IoU) and Q (amplified)."""
        dtype = working_dtype(anchors, gt_boxes, pred_boxes, pred_scores)
        anchors, boxes = anchors.to(dtype), finite_boxes(pred_boxes, dtype)
        objects = blank_padding(gt_boxes, gt_labels, dtype)
        scores = pred_scores.to(dtype).nan_to_num(nan=0.0).transpose(1, 2)
        image = torch.arange(len(objects), device=objects.device).unsqueeze(1)
        static = regressed = amplified = no_claims(len(objects), len(anchors), anchors)
        for part in chunks(objects.shape[1]):
            overlap = box_iou(objects[:, part], anchors)
            score = scores[image, gt_labels[:, part].clamp(min=0)]
            quality = _power(overlap, (self.sigma - score) / self.sigma)
            static = add_claims(static, overlap, part.start)
            regressed = add_claims(regressed, box_iou(objects[:, part], boxes), part.start)
            amplified = add_claims(amplified, quality, part.start)
        return static, regressed, amplified


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """Base ** exponent for 0 <= base <= 1, less than half the time of `torch.pow` on a CPU."""
    tiny = torch.finfo(base.dtype).tiny
    return base.clamp(min=tiny).log2_().mul_(exponent).exp2_().mul_(base.sign())


def _select(claims: Claims, objects: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A) masks of each object's best anchors: ranks below first, and from there below second.

    `first` and `second` are counts (B, M + 1) per object.
    """
    rank = rank_in_object(claims, objects)
    slot = torch.where(claims.owner >= 0, claims.owner, objects)
    chosen = rank < first.gather(1, slot)
    return chosen, (rank < second.gather(1, slot)) & ~chosen
