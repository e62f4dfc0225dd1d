"""SimOTA (YOLOX, Ge et al., 2021): each object takes its anchors of lowest cost."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..options import SimOTAOptions
from .base import Assigner, Assignment, StaticPart, hard_assignment, require_strides
from .conflicts import join_chunks, resolve_conflicts, stable_topk
from .inputs import AssignInputs
from .iou import Corners, centre_inside, pairwise_iou

# Logarithms are clamped to -100, as in binary cross-entropy.
MIN_LOG = -100.0
MIN_IOU = 1e-8


@dataclass(frozen=True)
class SimOTA(Assigner, SimOTAOptions):
    """Each object takes its k anchors of lowest cost = class BCE + iou_weight x -log(IoU).

    Candidates have their centre inside the object, or within `radius` strides of its centre (per
    axis); those with both come first. k is the sum of the object's `topk` highest IoUs, at least
    one. An anchor that several objects take goes to the one of lowest cost. With `iou_targets`, the
    class target of a positive is the IoU of its predicted box. Plain loop version: `loops.sim_ota`.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strides("sim_ota", self.anchor_strides)

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign both tasks the same anchors; none is ignored."""
        assert inputs.pred_scores is not None
        scores = inputs.pred_scores.to(inputs.dtype).nan_to_num(nan=0.0).clamp_(0.0, 1.0)
        inputs, regressed = inputs._replace(pred_scores=scores), inputs.regressed()
        background_cost = -_log(1 - scores).sum(-1)  # (B, A)
        anchor, cost, chosen = join_chunks(
            [self._choose(chunk, regressed, background_cost) for chunk in inputs.object_chunks()]
        )  # (B, M, k) each
        index, _ = resolve_conflicts(anchor, -cost, chosen, len(inputs.anchors))  # (B, A)
        assigned = hard_assignment(index, index, inputs.dtype)
        if not self.iou_targets:
            return assigned
        return assigned._replace(cls_quality=inputs.regressed_iou(index))

    def _choose(
        self, inputs: AssignInputs, regressed: Corners, background_cost: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the anchors of lowest cost of m objects, their cost and whether they are chosen,
        (B, m, k) each.

        `background_cost` (B, A) is the cross-entropy of an anchor's scores with no class at all.
        """
        # Candidates: centre inside the object or near its centre.
        objects = inputs.objects
        inside = centre_inside(objects, inputs.static)  # (B, m, A)
        near_centre = self._near_centre(objects, inputs.static)  # (B, m, A)
        candidate = (inside | near_centre) & (inputs.labels >= 0).unsqueeze(-1)
        # Cost: cross-entropy of the scores, and of the IoU; candidates that are both come first.
        iou = pairwise_iou(objects, regressed)  # (B, m, A)
        score = inputs.class_scores(slice(None))  # (B, m, A)
        cost = background_cost.unsqueeze(1) + _log(1 - score) - _log(score)
        cost = (cost - self.iou_weight * iou.clamp(min=MIN_IOU).log()).clamp_(min=0.0)
        cost = torch.where(inside & near_centre, cost, cost + self._max_cost(background_cost))
        cost = torch.where(candidate, cost, torch.inf)
        # Dynamic k: the sum of the highest IoUs.
        highest = torch.where(candidate, iou, 0.0).topk(min(self.topk, iou.shape[-1]), dim=-1)
        dynamic_k = highest.values.sum(-1, keepdim=True).long().clamp(min=1)  # (B, m, 1)
        # The k candidates of lowest cost.
        anchor = stable_topk(cost, self.topk, largest=False)  # (B, m, k)
        anchor_cost = cost.gather(2, anchor)  # (B, m, k)
        rank = torch.arange(anchor.shape[-1], device=anchor.device)  # (k,)
        return anchor, anchor_cost, (rank < dynamic_k) & anchor_cost.isfinite()

    def _max_cost(self, background_cost: Tensor) -> Tensor:
        """Return an upper bound of all costs of an image, (B, 1, 1).

        Candidates of second choice are moved above it. A constant large enough for every image
        would cost them precision.
        """
        rest = -MIN_LOG - self.iou_weight * math.log(MIN_IOU)
        return background_cost.amax(1).view(-1, 1, 1) + rest  # (B, 1, 1)

    def _near_centre(self, objects: Corners, static: Corners) -> Tensor:
        """Return whether an anchor's centre is within `radius` of its strides of an object's centre
        along both axes, (B, m, A)."""
        reach = require_strides("sim_ota", self.anchor_strides).to(static.x1) * self.radius  # (A,)
        x = (static.x1 + static.x2 - objects.x1 - objects.x2).abs() / 2  # (B, m, A)
        y = (static.y1 + static.y2 - objects.y1 - objects.y2).abs() / 2  # (B, m, A)
        return torch.maximum(x, y) < reach


def _log(p: Tensor) -> Tensor:
    """Return the clamped logarithm, in place."""
    return p.log_().clamp_(min=MIN_LOG)
