"""Inputs of an assigner, prepared once: objects, static and regressed boxes, scores."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .iou import AnchorIndex, Corners, box_corners, object_corners, pairwise_iou

# Objects per chunk: bounds memory by B x 8 x A, however many objects an image has.
CHUNK = 8


class AssignInputs(NamedTuple):
    """Objects, anchors and predictions of a batch, all in one dtype except the scores."""

    boxes: Tensor
    """Objects (B, M, 4), M at least 1; padded ones are empty and overlap nothing."""
    labels: Tensor
    """(B, M), padded by -1."""
    anchors: Tensor
    """(A, 4)"""
    static: Corners
    """The anchors, (1, 1, A)."""
    pred_boxes: Tensor | None
    """(B, A, 4) decoded."""
    pred_scores: Tensor | None
    """(B, A, C) after the sigmoid."""
    progress: float
    """Completed part of the training, 0 to 1."""

    @property
    def dtype(self) -> torch.dtype:
        """Return float64 if any input had it, else float32."""
        return self.boxes.dtype

    @property
    def objects(self) -> Corners:
        """Return the objects, (B, M, 1)."""
        return object_corners(self.boxes)

    def regressed(self) -> Corners:
        """Return the predicted boxes, made finite, (B, 1, A)."""
        assert self.pred_boxes is not None
        return box_corners(_finite(self.pred_boxes, self.dtype))

    def regressed_iou(self, gt_index: Tensor) -> Tensor:
        """Return the IoU of each predicted box with the object of its anchor (B, A); 0 without."""
        index = gt_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)  # (B, A, 4)
        own = object_corners(self.boxes.gather(1, index))  # (B, A, 1)
        own = Corners(*(x.transpose(1, 2) for x in own))  # (B, 1, A)
        iou = pairwise_iou(own, self.regressed()).squeeze(1)  # (B, A)
        return torch.where(gt_index >= 0, iou, 0.0)

    def score_and_iou(
        self, image: Tensor, anchor: Tensor, gt_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return, for N pairs of an anchor and an object of its image, the anchor's score for the
        object's class, in [0, 1] and NaN as 0, and the IoU of its predicted box: (N,) each."""
        assert self.pred_boxes is not None and self.pred_scores is not None
        score = self.pred_scores[image, anchor, self.labels[image, gt_index].clamp(min=0)]
        own = object_corners(self.boxes[image, gt_index].unsqueeze(1))  # (N, 1, 1)
        box = box_corners(_finite(self.pred_boxes[image, anchor], self.dtype).unsqueeze(1))
        score = score.to(self.dtype).nan_to_num(nan=0.0).clamp_(0.0, 1.0)  # (N,)
        return score, pairwise_iou(own, box).flatten()

    def class_scores(self, anchors: AnchorIndex) -> Tensor:
        """Return the scores of some anchors for the class of each object, NaN as 0: (B, M, n).

        The memory is newly allocated.
        """
        assert self.pred_scores is not None
        image = torch.arange(len(self.labels), device=self.labels.device).unsqueeze(1)  # (B, 1)
        label = self.labels.clamp(min=0)
        if isinstance(anchors, slice):
            scores = self.pred_scores[:, anchors].transpose(1, 2)[image, label]  # (B, M, n)
        else:
            scores = self.pred_scores[image.unsqueeze(2), anchors, label.unsqueeze(2)]  # (B, M, n)
        return scores.to(self.dtype).nan_to_num_(nan=0.0)

    def object_chunks(self) -> "Iterator[AssignInputs]":
        """Yield the same inputs with m objects at a time, m at most CHUNK."""
        for start in range(0, self.labels.shape[1], CHUNK):
            chunk = slice(start, start + CHUNK)
            yield self._replace(boxes=self.boxes[:, chunk], labels=self.labels[:, chunk])


def prepare_inputs(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    pred_boxes: Tensor | None = None,
    pred_scores: Tensor | None = None,
    progress: float = 1.0,
) -> AssignInputs:
    """Prepare the inputs of an assigner in its working dtype, padded to at least one object.

    Anchors are (A, 4), objects (B, M, 4), labels (B, M), predicted boxes (B, A, 4), scores
    (B, A, C). Raise ValueError if `progress` is not in [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}; it must be in [0, 1]: step / total steps")
    dtype = _working_dtype(anchors, gt_boxes, pred_boxes, pred_scores)
    if gt_labels.shape[1] == 0:  # reductions over objects need at least one
        gt_boxes = functional.pad(gt_boxes, (0, 0, 0, 1))  # (B, 1, 4)
        gt_labels = functional.pad(gt_labels, (0, 1), value=-1)  # (B, 1)
    boxes = torch.where(gt_labels.unsqueeze(-1) >= 0, gt_boxes.to(dtype), 0.0)
    anchors = anchors.to(dtype)
    static = box_corners(anchors.unsqueeze(0))  # (1, 1, A)
    return AssignInputs(boxes, gt_labels, anchors, static, pred_boxes, pred_scores, progress)


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor has it, else float32: IoUs in half precision reorder anchors."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _finite(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return boxes (..., 4) without NaN and infinities, small enough for finite areas."""
    return boxes.to(dtype).nan_to_num(nan=0.0, posinf=1e18, neginf=-1e18).clamp(-1e18, 1e18)
