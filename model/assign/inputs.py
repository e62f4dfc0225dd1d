"""What an assigner looks at, prepared once: real objects, static and regressed boxes, scores."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .iou import Corners, Where, box_corners, object_corners


class Scene(NamedTuple):
    """Objects and anchors of a batch, all in one dtype but the scores."""

    boxes: Tensor
    """Objects (B, M, 4), M at least 1; padded ones are empty and overlap nothing."""
    labels: Tensor
    """(B, M), padded by -1."""
    anchors: Tensor
    """(A, 4)"""
    static: Corners
    """The anchors, (1, 1, A)."""
    pred_boxes: Tensor | None
    pred_scores: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """float64 where any input had it, else float32."""
        return self.boxes.dtype

    @property
    def objects(self) -> Corners:
        """The objects, (B, M, 1)."""
        return object_corners(self.boxes)

    def part(self, objects: slice) -> "Scene":
        """The same with some of the objects."""
        return self._replace(boxes=self.boxes[:, objects], labels=self.labels[:, objects])

    def regressed(self) -> Corners:
        """The predicted boxes, finite, (B, 1, A)."""
        assert self.pred_boxes is not None
        return box_corners(_finite(self.pred_boxes, self.dtype))

    def score_of_object(self, where: Where) -> Tensor:
        """Scores that the chosen anchors give to the class of each object, (B, M, n) in memory of
        their own; NaN counts as 0."""
        assert self.pred_scores is not None
        image = torch.arange(len(self.labels), device=self.labels.device).unsqueeze(1)
        label = self.labels.clamp(min=0)
        if isinstance(where, slice):
            score = self.pred_scores[:, where].transpose(1, 2)[image, label]
        else:
            score = self.pred_scores[image.unsqueeze(2), where, label.unsqueeze(2)]
        return score.to(self.dtype).nan_to_num_(nan=0.0)


def look_at(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    pred_boxes: Tensor | None = None,
    pred_scores: Tensor | None = None,
) -> Scene:
    """Anchors (A, 4), objects (B, M, 4), labels (B, M), predicted boxes (B, A, 4) and scores
    (B, A, C) -> the scene."""
    dtype = _working_dtype(anchors, gt_boxes, pred_boxes, pred_scores)
    if gt_labels.shape[1] == 0:  # there is always something to reduce over
        gt_boxes = functional.pad(gt_boxes, (0, 0, 0, 1))
        gt_labels = functional.pad(gt_labels, (0, 1), value=-1)
    boxes = torch.where(gt_labels.unsqueeze(-1) >= 0, gt_boxes.to(dtype), 0.0)
    anchors = anchors.to(dtype)
    static = box_corners(anchors.unsqueeze(0))
    return Scene(boxes, gt_labels, anchors, static, pred_boxes, pred_scores)


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor has it, else float32: overlaps in half precision reorder anchors."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _finite(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """Boxes (..., 4) without NaN or infinities, small enough that areas stay finite."""
    return boxes.to(dtype).nan_to_num(nan=0.0, posinf=1e18, neginf=-1e18).clamp(-1e18, 1e18)
