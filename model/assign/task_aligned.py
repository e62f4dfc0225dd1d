"""TaskAligned (TOOD, Feng et al., ICCV 2021): anchors that are good at both tasks at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import TaskAlignedOptions
from .base import (
    Assigner,
    Assignment,
)
from .conflicts import first_k, in_chunks, settle, spread
from .inputs import Scene
from .iou import Corners, centre_inside, overlap


@dataclass(frozen=True)
class TaskAligned(Assigner, TaskAlignedOptions):
    """Each object takes the `topk` anchors of highest t = s^alpha u^beta with their centre inside.

    s is the score of the object's class, u the IoU of the predicted box. The class target, which is
    also the regression weight, is t scaled per object so that its highest value is the object's
    highest u. An anchor that several objects take goes to the one it overlaps most.
    """

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`. Both tasks learn the same anchors; none is ignored."""
        regressed = scene.regressed()
        taken, t, u = in_chunks(lambda part: self._choose(part, regressed), scene)
        index, granted = settle(taken, u, t > 0, len(scene.anchors))
        target = spread(taken, _scaled(t, u, granted), granted, len(scene.anchors))
        return Assignment(index, target, index, target)

    def _choose(self, scene: Scene, regressed: Corners) -> tuple[Tensor, Tensor, Tensor]:
        """The best anchors of m objects, their t and u, all (B, m, k); t is 0 where no anchor is
        left to take."""
        objects = scene.objects
        u = overlap(objects, regressed)
        s = scene.score_of_object(slice(None)).clamp_(0.0, 1.0)
        t = s.pow_(self.alpha).mul_(u.pow(self.beta)).mul_(centre_inside(objects, scene.static))
        t = t.mul_((scene.labels >= 0).unsqueeze(-1))
        taken = first_k(t, self.topk, largest=True)
        return taken, t.gather(2, taken), u.gather(2, taken)


def _scaled(t: Tensor, u: Tensor, granted: Tensor) -> Tensor:
    """t (B, M, k) scaled per object so that its highest granted value is the highest granted u."""
    highest_t = torch.where(granted, t, 0.0).amax(-1, keepdim=True)
    highest_u = torch.where(granted, u, 0.0).amax(-1, keepdim=True)
    return t / highest_t.clamp(min=torch.finfo(t.dtype).tiny) * highest_u
