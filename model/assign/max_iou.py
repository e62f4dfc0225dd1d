"""The baseline of anchor-based detectors: an anchor learns the object it overlaps most."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..options import MaxIoUOptions
from .base import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    hard_assignment,
)
from .best_object import Claims, claim_and_force, hold_contests
from .inputs import Scene
from .iou import Where, overlap


@dataclass(frozen=True)
class MaxIoU(Assigner, MaxIoUOptions):
    """Positive from one IoU on, ignored from another; each object's best anchor is forced."""

    uses_predictions: ClassVar[bool] = False

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`; predictions are not looked at."""
        claims = claim_by_iou(scene)
        owned = claims.owner >= 0
        positive = owned & (claims.quality >= self.pos_threshold)
        ignored = owned & (claims.quality >= self.ignore_threshold)
        loc_index = torch.where(positive, claims.owner, BACKGROUND)
        cls_index = torch.where(ignored & ~positive, IGNORED, loc_index)
        return hard_assignment(cls_index, loc_index, claims.quality.dtype)

    def count(self, scene: Scene) -> Tensor:
        """(2,) positives of both tasks; exact."""
        return count_by_iou(scene, self.pos_threshold).repeat(2)


def claim_by_iou(scene: Scene) -> Claims:
    """Claims (B, A) by the IoU of anchors and objects."""
    objects = scene.objects

    def quality(where: Where) -> Tensor:
        return overlap(objects, scene.static.at(where))

    contest = hold_contests(lambda part: [quality(part)], scene.labels, len(scene.anchors))[0]
    return claim_and_force(contest, quality)


def count_by_iou(scene: Scene, threshold: float) -> Tensor:
    """Scalar: anchors whose object is claimed with at least this IoU, over the whole batch."""
    quality = claim_by_iou(scene).quality
    return (quality >= threshold).sum().to(quality.dtype)
