"""Mutual Guidance, soft (the authors' code of 2021-2023): qualities are targets and weights.

Classification ranks by the IoU R of the regressed boxes and learns R itself; localization ranks by
min(1, A exp(p / sigma)), the amplified static IoU, and is weighted by it. How many anchors an
object gets follows from how good its best ones are, in each task for itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import MutualGuidanceSoftOptions
from .base import (
    BACKGROUND,
    Assigner,
    Assignment,
)
from .best_object import Claims, claim, hold_contests
from .inputs import Scene
from .iou import Where, overlap
from .per_object_topk import best_qualities, pick, rank_in_object


@dataclass(frozen=True)
class MutualGuidanceSoft(Assigner, MutualGuidanceSoftOptions):
    """Takes floor(sum of an object's `topk` highest qualities) anchors, at least one.

    With a task's guidance switched off, that task ranks, counts and weighs by the static IoU.
    """

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`. No anchor is ignored, none is forced."""
        for_cls, for_loc = self._claims(scene)
        objects = scene.labels.shape[1]
        return Assignment(*self._best(for_cls, objects), *self._best(for_loc, objects))

    def _claims(self, scene: Scene) -> tuple[Claims, Claims]:
        """Claims (B, A) by the quality of each task."""
        objects = scene.objects
        moved = scene.regressed() if self.localize_to_classify else scene.static

        def qualities(where: Where) -> list[Tensor]:
            for_cls, for_loc = (overlap(objects, x.at(where)) for x in (moved, scene.static))
            if self.classify_to_localize:
                score = scene.score_of_object(where)
                for_loc = score.div_(self.sigma).exp_().mul_(for_loc).clamp_(max=1.0)
            return [for_cls, for_loc]

        for_cls, for_loc = hold_contests(qualities, scene.labels, len(scene.anchors))
        return claim(for_cls), claim(for_loc)

    def _best(self, claims: Claims, objects: int) -> tuple[Tensor, Tensor]:
        """Object and quality (B, A) of the anchors that one task learns."""
        batch, anchors = claims.owner.shape
        most = claims.owner.new_full((batch, objects + 1), self.topk)
        most[:, objects] = 0
        ranking = rank_in_object(claims, most)
        wanted = best_qualities(ranking, self.topk, most.shape).sum(-1).long().clamp(min=1)
        chosen = pick(ranking, torch.where(most > 0, wanted, 0), anchors)
        index = torch.where(chosen, claims.owner, BACKGROUND)
        return index, torch.where(chosen, claims.quality, 0.0)
