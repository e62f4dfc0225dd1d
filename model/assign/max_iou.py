"""The baseline of anchor-based detectors: an anchor learns the object it overlaps most."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .claims import Claims, claim_and_force, hold_contests
from .overlap import Where, box_corners, object_corners, overlap
from .types import (
    BACKGROUND,
    IGNORED,
    Assignment,
    check_thresholds,
    hard_assignment,
    real_objects,
    working_dtype,
)


@dataclass(frozen=True)
class MaxIoU:
    """Positive from one IoU on, ignored from another; each object's best anchor is forced."""

    pos_threshold: float = 0.5
    ignore_threshold: float = 0.4
    uses_predictions: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_thresholds(self.pos_threshold, self.ignore_threshold)

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """See `Assigner`; predictions are not looked at."""
        claims = claim_by_iou(anchors, gt_boxes, gt_labels)
        owned = claims.owner >= 0
        positive = owned & (claims.quality >= self.pos_threshold)
        ignored = owned & (claims.quality >= self.ignore_threshold)
        loc_index = torch.where(positive, claims.owner, BACKGROUND)
        cls_index = torch.where(ignored & ~positive, IGNORED, loc_index)
        return hard_assignment(cls_index, loc_index, claims.quality.dtype)

    @torch.no_grad()
    def expected_positives(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
        """(2,) positives of both tasks; exact."""
        return count_by_iou(anchors, gt_boxes, gt_labels, self.pos_threshold).repeat(2)


def claim_by_iou(anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Claims:
    """Claims (B, A) by the IoU of anchors (A, 4) and objects (B, M, 4)."""
    dtype = working_dtype(anchors, gt_boxes)
    boxes, labels = real_objects(gt_boxes, gt_labels, dtype)
    objects, static = object_corners(boxes), box_corners(anchors.to(dtype).unsqueeze(0))

    def quality(where: Where) -> Tensor:
        return overlap(objects, static.at(where))

    contest = hold_contests(lambda part: [quality(part)], labels.shape, len(anchors))[0]
    return claim_and_force(contest, quality)


def count_by_iou(anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, threshold: float) -> Tensor:
    """Scalar: anchors whose object is claimed with at least this IoU, over the whole batch."""
    quality = claim_by_iou(anchors, gt_boxes, gt_labels).quality
    return (quality >= threshold).sum().to(quality.dtype)
