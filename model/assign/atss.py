"""ATSS (Zhang et al., CVPR 2020): a threshold for each object, from the anchors near it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..anchors import ANCHORS_PER_CELL
from .overlap import Corners, box_corners, centre_inside, object_corners, overlap
from .selection import first_k, object_chunks, settle
from .types import (
    Assignment,
    check_positive,
    check_strides,
    hard_assignment,
    real_objects,
    working_dtype,
)


@dataclass(frozen=True)
class ATSS:
    """Positive are those of the nearest anchors that overlap an object by mean + std of theirs.

    The candidates of an object are all anchors of the `candidates` nearest cells of each level. An
    object may be left without an anchor, when none of them has its centre inside.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)
    candidates: int = 9
    uses_predictions: ClassVar[bool] = False
    levels: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_positive(candidates=self.candidates)
        strides = check_strides("atss", self.anchor_strides)
        levels = ((strides == stride).nonzero().squeeze(1) for stride in strides.unique())
        object.__setattr__(self, "levels", tuple(levels))

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """See `Assigner`; predictions are not looked at. Both tasks learn the same anchors."""
        dtype = working_dtype(anchors, gt_boxes)
        boxes, labels = real_objects(gt_boxes, gt_labels, dtype)
        static, cells = box_corners(anchors.to(dtype).unsqueeze(0)), self._cells(anchors.to(dtype))
        near, merit, chosen = (
            torch.cat(pieces, 1)
            for pieces in zip(
                *(
                    self._choose(boxes[:, part], labels[:, part], static, cells)
                    for part in object_chunks(labels.shape[1])
                ),
                strict=True,
            )
        )
        index, _ = settle(near, merit, chosen, len(anchors))
        return hard_assignment(index, index, dtype)

    @torch.no_grad()
    def expected_positives(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
        """(2,) positives of both tasks; exact."""
        index = self(anchors, gt_boxes, gt_labels).cls_index
        return (index >= 0).sum().to(working_dtype(anchors, gt_boxes)).repeat(2)

    def _cells(self, anchors: Tensor) -> Tensor:
        """(A, 2) centre of the cell each anchor lies in.

        Centres of anchors in one cell differ by their rounding; those of cells do not, so that
        cells at the same distance tie exactly.
        """
        stride = check_strides("atss", self.anchor_strides).to(anchors).unsqueeze(1)
        return (((anchors[:, :2] + anchors[:, 2:]) / 2 / stride).floor() + 0.5) * stride

    def _choose(
        self, boxes: Tensor, labels: Tensor, static: Corners, cells: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors near objects (B, m, 4), their IoU, and which are positive, all (B, m, k)."""
        near = torch.cat([self._nearest(boxes, cells, level) for level in self.levels], -1)
        objects, candidates = object_corners(boxes), static.at(near)
        iou = overlap(objects, candidates)
        threshold = iou.mean(-1, keepdim=True) + iou.std(-1, keepdim=True)
        positive = (iou >= threshold) & (iou > 0) & centre_inside(objects, candidates)
        return near, iou, positive & (labels >= 0).unsqueeze(-1)

    def _nearest(self, boxes: Tensor, cells: Tensor, level: Tensor) -> Tensor:
        """(B, m, k) anchors of the cells of one level that are nearest to the objects' centres."""
        level = level.to(cells.device)
        centre = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(2) / 2
        distance = (centre - cells[level]).square().sum(-1)
        return level[first_k(distance, self.candidates * ANCHORS_PER_CELL, largest=False)]
