"""The face that all assigners share."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .overlap import Where

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


class Assigner(Protocol):
    """Decides which anchors learn which objects. No gradient flows through the decision."""

    uses_predictions: bool
    """Whether `pred_boxes` and `pred_scores` matter; where not, they may be None."""

    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """Anchors (A, 4), objects (B, M, 4) with labels (B, M) padded by -1, predicted boxes
        (B, A, 4) and scores (B, A, C) -> Assignment."""
        ...

    def expected_positives(
        self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor
    ) -> Tensor | None:
        """(2,) classification and localization positives of these objects, where they are known
        before the predictions; None where they are not."""
        ...


def hard_assignment(cls_index: Tensor, loc_index: Tensor, dtype: torch.dtype) -> Assignment:
    """An assignment (B, A) whose positives all weigh one."""
    return Assignment(cls_index, (cls_index >= 0).to(dtype), loc_index, (loc_index >= 0).to(dtype))


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor has it, else float32: overlaps in half precision reorder anchors."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def finite_boxes(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """Boxes (..., 4) without NaN or infinities, small enough that areas stay finite."""
    return boxes.to(dtype).nan_to_num(nan=0.0, posinf=1e18, neginf=-1e18).clamp(-1e18, 1e18)


def real_objects(gt_boxes: Tensor, gt_labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Objects (B, M, 4) with padded ones emptied, so that they overlap nothing, and labels (B, M).

    M is at least 1, so that there is always something to reduce over.
    """
    if gt_labels.shape[1] == 0:
        gt_boxes = functional.pad(gt_boxes, (0, 0, 0, 1))
        gt_labels = functional.pad(gt_labels, (0, 1), value=-1)
    return torch.where(gt_labels.unsqueeze(-1) >= 0, gt_boxes.to(dtype), 0.0), gt_labels


def score_of_object(
    pred_scores: Tensor, gt_labels: Tensor, where: Where, dtype: torch.dtype
) -> Tensor:
    """Scores (B, A, C) that the chosen anchors give to the class of each object, (B, M, n) in
    memory of their own; NaN counts as 0."""
    image = torch.arange(len(gt_labels), device=gt_labels.device).unsqueeze(1)
    label = gt_labels.clamp(min=0)
    if isinstance(where, slice):
        score = pred_scores[:, where].transpose(1, 2)[image, label]
    else:
        score = pred_scores[image.unsqueeze(2), where, label.unsqueeze(2)]
    return score.to(dtype).nan_to_num_(nan=0.0)


def check_thresholds(positive: float, ignore: float) -> None:
    """Raises ValueError unless 0 < ignore <= positive."""
    if not ignore > 0:
        raise ValueError(f"ignore_threshold is {ignore}; it must be above 0")
    if ignore > positive:
        raise ValueError(f"ignore_threshold {ignore} is above pos_threshold {positive}")


def check_positive(**options: float) -> None:
    """Raises ValueError unless all options are above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


def check_strides(name: str, anchor_strides: Tensor | None) -> Tensor:
    """The strides (A,), or ValueError where there are none."""
    if anchor_strides is None:
        raise ValueError(f"{name} needs anchor_strides, the stride of each anchor's level")
    return anchor_strides
