"""The interface that all assigners share."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .best_object import Matches
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


class StaticPart(NamedTuple):
    """What an assignment owes to anchors and objects alone, known before the predictions."""

    positives: Tensor
    """(2,) classification and localization positives of the batch."""
    result: Matches | Assignment
    """The part itself, (B, A): the matches by A, or the whole assignment."""


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
        static: StaticPart | None = None,
        progress: float = 1.0,
    ) -> Assignment:
        """Assign anchors (A, 4) to objects (B, M, 4) with labels (B, M) padded by -1.

        Predicted boxes are (B, A, 4), their scores (B, A, C). `static` is the result of
        `static_part` for the same anchors, objects and progress; without it, it is computed here.
        `progress` is the step by the number of all steps, for assigners that change during
        training.
        """
        if not self.uses_predictions:
            pred_boxes = pred_scores = None
        inputs = prepare_inputs(anchors, gt_boxes, gt_labels, pred_boxes, pred_scores, progress)
        return self.assign(inputs, static)

    @torch.no_grad()
    def static_part(
        self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, progress: float = 1.0
    ) -> StaticPart | None:
        """Return the part of the assignment that depends on no predictions.

        None if the number of positives depends on them.
        """
        inputs = prepare_inputs(anchors, gt_boxes, gt_labels, progress=progress)
        return self.assign_static(inputs)

    @abstractmethod
    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Return the assignment of prepared inputs."""

    def assign_static(self, inputs: AssignInputs) -> StaticPart | None:
        """Return `static_part` of prepared inputs; None unless an assigner overrides it."""
        return None


def hard_assignment(cls_index: Tensor, loc_index: Tensor, dtype: torch.dtype) -> Assignment:
    """Return the assignment (B, A) whose positives all have weight 1."""
    return Assignment(cls_index, (cls_index >= 0).to(dtype), loc_index, (loc_index >= 0).to(dtype))


def spare_background(cls_index: Tensor, iou: Tensor, spare_iou: float) -> Tensor:
    """Ignore background anchors (B, A) whose highest IoU (B, A) with an object is `spare_iou` or
    more; 0 spares none."""
    if spare_iou == 0:
        return cls_index
    return torch.where((cls_index == BACKGROUND) & (iou >= spare_iou), IGNORED, cls_index)


def require_strides(name: str, anchor_strides: Tensor | None) -> Tensor:
    """Return the strides (A,), or raise ValueError if they were not given."""
    if anchor_strides is None:
        raise ValueError(f"{name} needs anchor_strides, the stride of each anchor's level")
    return anchor_strides
