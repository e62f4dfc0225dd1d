"""The interface that all assigners share."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .inputs import AssignInputs, prepare_inputs

BACKGROUND = -1
IGNORED = -2


class Assignment(NamedTuple):
    """What each anchor learns, per task. All (B, A)."""

    cls_index: Tensor
    """Object to classify as; -1 background, -2 ignored."""
    cls_quality: Tensor
    """Class target of a positive; 1 for hard assigners, 0 elsewhere."""
    loc_index: Tensor
    """Object to regress to; -1 none."""
    loc_weight: Tensor
    """Regression weight of a positive, unnormalised; 0 elsewhere."""


class Assigner(ABC):
    """Decides which anchors learn which objects. No gradient flows through the decision."""

    uses_predictions: ClassVar[bool] = True
    """Whether `pred_boxes` and `pred_scores` are used; if not, they may be None."""

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """Assign anchors (A, 4) to objects (B, M, 4) with labels (B, M) padded by -1.

        Predicted boxes are (B, A, 4), their scores (B, A, C).
        """
        if not self.uses_predictions:
            pred_boxes = pred_scores = None
        return self.assign(prepare_inputs(anchors, gt_boxes, gt_labels, pred_boxes, pred_scores))

    @torch.no_grad()
    def expected_positives(
        self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor
    ) -> Tensor | None:
        """Return the classification and localization positives, (2,), if they are known before the
        predictions, else None."""
        return self.count_positives(prepare_inputs(anchors, gt_boxes, gt_labels))

    @abstractmethod
    def assign(self, inputs: AssignInputs) -> Assignment:
        """Return the assignment of prepared inputs."""

    def count_positives(self, inputs: AssignInputs) -> Tensor | None:
        """Return `expected_positives` of prepared inputs; None unless an assigner overrides it."""
        return None


def hard_assignment(cls_index: Tensor, loc_index: Tensor, dtype: torch.dtype) -> Assignment:
    """Return the assignment (B, A) whose positives all have weight 1."""
    return Assignment(cls_index, (cls_index >= 0).to(dtype), loc_index, (loc_index >= 0).to(dtype))


def require_strides(name: str, anchor_strides: Tensor | None) -> Tensor:
    """Return the strides (A,), or raise ValueError if they were not given."""
    if anchor_strides is None:
        raise ValueError(f"{name} needs anchor_strides, the stride of each anchor's level")
    return anchor_strides
