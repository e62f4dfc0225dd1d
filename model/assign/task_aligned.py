"""TaskAligned (TOOD, Feng et al., ICCV 2021): anchors that are good at both tasks at once."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .overlap import Corners, box_corners, centre_inside, object_corners, overlap
from .selection import first_k, object_chunks, settle, spread
from .types import (
    Assignment,
    check_positive,
    finite_boxes,
    real_objects,
    score_of_object,
    working_dtype,
)


@dataclass(frozen=True)
class TaskAligned:
    """Each object takes the `topk` anchors of highest t = s^alpha u^beta with their centre inside.

    s is the score of the object's class, u the IoU of the predicted box. The class target, which is
    also the regression weight, is t scaled per object so that its highest value is the object's
    highest u. An anchor that several objects take goes to the one it overlaps most.
    """

    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    uses_predictions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(topk=self.topk, alpha=self.alpha, beta=self.beta)

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        pred_boxes: Tensor | None = None,
        pred_scores: Tensor | None = None,
    ) -> Assignment:
        """See `Assigner`. Both tasks learn the same anchors; none is ignored."""
        assert pred_boxes is not None and pred_scores is not None
        dtype = working_dtype(anchors, gt_boxes, pred_boxes, pred_scores)
        boxes, labels = real_objects(gt_boxes, gt_labels, dtype)
        static = box_corners(anchors.to(dtype).unsqueeze(0))
        regressed = box_corners(finite_boxes(pred_boxes, dtype))
        chunks = [
            self._choose(boxes[:, part], labels[:, part], static, regressed, pred_scores)
            for part in object_chunks(labels.shape[1])
        ]
        taken, t, u = (torch.cat(pieces, 1) for pieces in zip(*chunks, strict=True))
        index, granted = settle(taken, u, t > 0, len(anchors))
        target = spread(taken, _scaled(t, u, granted), granted, len(anchors))
        return Assignment(index, target, index, target)

    def expected_positives(self, anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> None:
        """None: the predictions decide."""

    def _choose(
        self,
        boxes: Tensor,
        labels: Tensor,
        static: Corners,
        regressed: Corners,
        pred_scores: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best anchors of objects (B, m, 4), their t and u, all (B, m, k); t is 0 where no
        anchor is left to take."""
        objects = object_corners(boxes)
        u = overlap(objects, regressed)
        s = score_of_object(pred_scores, labels, slice(None), u.dtype).clamp_(0.0, 1.0)
        t = s.pow_(self.alpha).mul_(u.pow(self.beta)).mul_(centre_inside(objects, static))
        t = t.mul_((labels >= 0).unsqueeze(-1))
        taken = first_k(t, self.topk, largest=True)
        return taken, t.gather(2, taken), u.gather(2, taken)


def _scaled(t: Tensor, u: Tensor, granted: Tensor) -> Tensor:
    """t (B, M, k) scaled per object so that its highest granted value is the highest granted u."""
    highest_t = torch.where(granted, t, 0.0).amax(-1, keepdim=True)
    highest_u = torch.where(granted, u, 0.0).amax(-1, keepdim=True)
    return t / highest_t.clamp(min=torch.finfo(t.dtype).tiny) * highest_u
