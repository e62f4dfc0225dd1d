"""Mutual Guidance, soft (the authors' code of 2021-2023): qualities are targets and weights.

Classification ranks by the IoU R of the regressed boxes and learns R itself; localization ranks by
min(1, A exp(p / sigma)), the amplified static IoU, and is weighted by it. How many anchors an
object gets follows from how good its best ones are, in each task for itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .claims import Claims, claim, hold_contests
from .overlap import Where, box_corners, object_corners, overlap
from .ranking import best_qualities, pick, rank_in_object
from .types import (
    BACKGROUND,
    Assignment,
    check_positive,
    finite_boxes,
    real_objects,
    score_of_object,
    working_dtype,
)


@dataclass(frozen=True)
class MutualGuidanceSoft:
    """Takes floor(sum of an object's `topk` highest qualities) anchors, at least one.

    With a task's guidance switched off, that task ranks, counts and weighs by the static IoU.
    """

    sigma: float = 2.0
    topk: int = 15
    localize_to_classify: bool = True
    classify_to_localize: bool = True
    uses_predictions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma, topk=self.topk)

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """See `Assigner`. No anchor is ignored, none is forced."""
        assert pred_boxes is not None and pred_scores is not None
        for_cls, for_loc = self._claims(anchors, gt_boxes, gt_labels, pred_boxes, pred_scores)
        objects = max(gt_labels.shape[1], 1)
        return Assignment(*self._best(for_cls, objects), *self._best(for_loc, objects))

    def expected_positives(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> None:
        """None: the predictions decide."""

    def _claims(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor,
        pred_scores: Tensor,
    ) -> tuple[Claims, Claims]:
        """Claims (B, A) by the quality of each task."""
        dtype = working_dtype(anchors, gt_boxes, pred_boxes, pred_scores)
        boxes, labels = real_objects(gt_boxes, gt_labels, dtype)
        objects, static = object_corners(boxes), box_corners(anchors.to(dtype).unsqueeze(0))
        regressed = box_corners(finite_boxes(pred_boxes, dtype))

        def qualities(where: Where) -> list[Tensor]:
            moved = regressed if self.localize_to_classify else static
            for_cls, for_loc = (overlap(objects, x.at(where)) for x in (moved, static))
            if self.classify_to_localize:
                score = score_of_object(pred_scores, labels, where, dtype)
                for_loc = score.div_(self.sigma).exp_().mul_(for_loc).clamp_(max=1.0)
            return [for_cls, for_loc]

        for_cls, for_loc = hold_contests(qualities, labels.shape, len(anchors))
        return claim(for_cls), claim(for_loc)

    def _best(self, claims: Claims, objects: int) -> tuple[Tensor, Tensor]:
        """Object and quality (B, A) of the anchors that one task learns."""
        batch, anchors = claims.owner.shape
        most = claims.owner.new_full((batch, objects + 1), self.topk)
        most[:, objects] = 0
        ranking = rank_in_object(claims, most)
        wanted = best_qualities(ranking, self.topk, most.shape).sum(-1).long().clamp(min=1)
        chosen = pick(ranking, torch.where(most > 0, wanted, 0), anchors)
        index = torch.where(chosen, claims.owner, BACKGROUND)
        return index, torch.where(chosen, claims.quality, 0.0)
