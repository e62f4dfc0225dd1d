"""TaskAligned (TOOD, Feng et al., ICCV 2021): anchors that are good at both tasks at once."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..anchor_shapes import AnchorShapes
from ..options import TaskAlignedOptions
from .atss import ATSS
from .base import Assigner, Assignment, StaticPart, require_strides
from .conflicts import join_chunks, resolve_conflicts, scatter_to_anchors, stable_topk
from .inputs import AssignInputs
from .iou import Corners, centre_inside, pairwise_iou


@dataclass(frozen=True)
class TaskAligned(Assigner, TaskAlignedOptions):
    """Each object takes the `topk` anchors of highest t = s^alpha u^beta with their centre inside.

    s is the score of the object's class, u the IoU of the predicted box. The class target, which is
    also the regression weight, is t scaled per object so that its highest value is the object's
    highest u. An anchor that several objects take goes to the one of highest u.

    Before `static_fraction` of the training, when predictions are still poor, ATSS assigns instead,
    which needs `anchor_strides`. Plain loop version: `loops.task_aligned`.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)
    anchors_per_cell: int = field(default=AnchorShapes().per_cell, repr=False, compare=False)

    @cached_property
    def atss(self) -> ATSS:
        """Return the assigner of the first part; raise ValueError without strides."""
        strides = require_strides("task_aligned with static_fraction", self.anchor_strides)
        return ATSS(anchor_strides=strides, anchors_per_cell=self.anchors_per_cell)

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign both tasks the same anchors; none is ignored."""
        if inputs.progress < self.static_fraction:
            return self.atss.assign(inputs, static)
        num_anchors, regressed = len(inputs.anchors), inputs.regressed()
        anchor, t, u = join_chunks(
            [self._choose(chunk, regressed) for chunk in inputs.object_chunks()]
        )  # (B, M, k) each
        index, kept = resolve_conflicts(anchor, u, t > 0, num_anchors)  # (B, A), (B, M, k)
        target = scatter_to_anchors(anchor, _scaled(t, u, kept), kept, num_anchors)  # (B, A)
        return Assignment(index, target, index, target)

    def assign_static(self, inputs: AssignInputs) -> StaticPart | None:
        """Return the assignment by ATSS in the first part of the training, None after it."""
        if inputs.progress < self.static_fraction:
            return self.atss.assign_static(inputs)
        return None

    def _choose(self, inputs: AssignInputs, regressed: Corners) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best anchors of m objects, their t and u, (B, m, k) each.

        t is 0 where an object has fewer than k anchors to take.
        """
        # Alignment t of all anchors with their centre inside.
        objects = inputs.objects
        u = pairwise_iou(objects, regressed)  # (B, m, A)
        s = inputs.class_scores(slice(None)).clamp_(0.0, 1.0)  # (B, m, A)
        t = s.pow_(self.alpha).mul_(u.pow(self.beta)).mul_(centre_inside(objects, inputs.static))
        t = t.mul_((inputs.labels >= 0).unsqueeze(-1))
        # The best of them.
        anchor = stable_topk(t, self.topk, largest=True)  # (B, m, k)
        return anchor, t.gather(2, anchor), u.gather(2, anchor)


def _scaled(t: Tensor, u: Tensor, kept: Tensor) -> Tensor:
    """Scale t (B, M, k) per object so that its highest kept value is the highest kept u."""
    max_t = torch.where(kept, t, 0.0).amax(-1, keepdim=True)  # (B, M, 1)
    max_u = torch.where(kept, u, 0.0).amax(-1, keepdim=True)  # (B, M, 1)
    return t / max_t.clamp(min=torch.finfo(t.dtype).tiny) * max_u
