"""SimOTA (YOLOX, Ge et al., 2021): each object takes the anchors that cost it least."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..options import SimOTAOptions
from .base import (
    Assigner,
    Assignment,
    check_strides,
    hard_assignment,
)
from .conflicts import first_k, in_chunks, settle
from .inputs import Scene
from .iou import Corners, centre_inside, overlap

# Logarithms are held at -100, as binary cross-entropy holds them.
LOWEST_LOG = -100.0
LOWEST_IOU = 1e-8


@dataclass(frozen=True)
class SimOTA(Assigner, SimOTAOptions):
    """Each object takes its k anchors of lowest cost = class BCE + iou_weight x -log(IoU).

    Candidates have their centre inside the object, or within `radius` strides of its centre (per
    axis); those with both come first. k is the sum of the object's `topk` highest IoUs, at least
    one. An anchor that several objects take goes to the one it costs least.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strides("sim_ota", self.anchor_strides)

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`. Both tasks learn the same anchors; none is ignored."""
        assert scene.pred_scores is not None
        scores = scene.pred_scores.to(scene.dtype).nan_to_num(nan=0.0).clamp_(0.0, 1.0)
        scene, regressed = scene._replace(pred_scores=scores), scene.regressed()
        background = -_log(1 - scores).sum(-1)
        taken, cost, chosen = in_chunks(
            lambda part: self._choose(part, regressed, background), scene
        )
        index, _ = settle(taken, -cost, chosen, len(scene.anchors))
        return hard_assignment(index, index, scene.dtype)

    def _choose(
        self, scene: Scene, regressed: Corners, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cheapest anchors of m objects, their cost, and which are taken, all (B, m, k).

        `background` (B, A) is the cross-entropy of naming no class at all.
        """
        objects = scene.objects
        inside = centre_inside(objects, scene.static)
        near = self._near_centre(objects, scene.static)
        candidate = (inside | near) & (scene.labels >= 0).unsqueeze(-1)
        iou = overlap(objects, regressed)
        score = scene.score_of_object(slice(None))
        cost = background.unsqueeze(1) + _log(1 - score) - _log(score)
        cost = (cost - self.iou_weight * iou.clamp(min=LOWEST_IOU).log()).clamp_(min=0.0)
        cost = torch.where(inside & near, cost, cost + self._highest_cost(background))
        cost = torch.where(candidate, cost, torch.inf)
        highest = torch.where(candidate, iou, 0.0).topk(min(self.topk, iou.shape[-1]), dim=-1)
        count = highest.values.sum(-1, keepdim=True).long().clamp(min=1)
        taken = first_k(cost, self.topk, largest=False)
        price = cost.gather(2, taken)
        rank = torch.arange(taken.shape[-1], device=taken.device)
        return taken, price, (rank < count) & price.isfinite()

    def _highest_cost(self, background: Tensor) -> Tensor:
        """(B, 1, 1) a bound on all costs of an image. Those of second choice are put above it; a
        constant that is surely large enough would cost them their precision."""
        rest = -LOWEST_LOG - self.iou_weight * math.log(LOWEST_IOU)
        return background.amax(1).view(-1, 1, 1) + rest

    def _near_centre(self, objects: Corners, static: Corners) -> Tensor:
        """(B, m, A) whether an anchor's centre is within `radius` of its strides of an object's."""
        reach = check_strides("sim_ota", self.anchor_strides).to(static.x1) * self.radius
        x = (static.x1 + static.x2 - objects.x1 - objects.x2).abs() / 2
        y = (static.y1 + static.y2 - objects.y1 - objects.y2).abs() / 2
        return torch.maximum(x, y) < reach


def _log(p: Tensor) -> Tensor:
    """Logarithm, in place."""
    return p.log_().clamp_(min=LOWEST_LOG)
