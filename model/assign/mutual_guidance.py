"""Mutual Guidance as published (Zhang et al., ACCV 2020): each task chooses for the other.

The regressed boxes choose which anchors learn to classify (localize to classify); the class scores,
through the amplified overlap, choose which anchors learn to regress (classify to localize). How
many anchors an object gets is fixed by the static anchors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import MutualGuidanceOptions
from .base import (
    BACKGROUND,
    IGNORED,
    Assigner,
    Assignment,
    hard_assignment,
)
from .best_object import Claims, claim_and_force, hold_contests
from .inputs import Scene
from .iou import Where, overlap
from .max_iou import count_by_iou
from .per_object_topk import count_per_object, pick, rank_in_object


@dataclass(frozen=True)
class MutualGuidance(Assigner, MutualGuidanceOptions):
    """Ranks an object's anchors by predicted box and by predicted score, and takes the best.

    With a task's guidance switched off, that task ranks by the IoU of the static anchors, as
    max-IoU does.
    """

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`."""
        static, for_cls, for_loc = self._claims(scene)
        objects, anchors = scene.labels.shape[1], len(scene.anchors)
        positives = count_per_object(static, self.pos_threshold, objects)
        ignored = count_per_object(static, self.ignore_threshold, objects)
        by_cls = rank_in_object(for_cls, ignored)
        learns_to_classify = pick(by_cls, positives, anchors)
        spared = pick(by_cls, ignored, anchors)
        learns_to_regress = pick(rank_in_object(for_loc, positives), positives, anchors)
        cls_index = torch.where(spared, IGNORED, BACKGROUND)
        cls_index = torch.where(learns_to_classify, for_cls.owner, cls_index)
        loc_index = torch.where(learns_to_regress, for_loc.owner, BACKGROUND)
        return hard_assignment(cls_index, loc_index, static.quality.dtype)

    def count(self, scene: Scene) -> Tensor:
        """(2,) positives of both tasks, n_pos summed; fewer anchors are found only where almost no
        regressed box meets an object."""
        return count_by_iou(scene, self.pos_threshold).repeat(2)

    def _claims(self, scene: Scene) -> tuple[Claims, Claims, Claims]:
        """Claims (B, A) by the paper's A (static IoU), and for each task by what guides it: R
        (IoU of the regressed box) for classification, Q (amplified) for localization."""
        objects, regressed = scene.objects, scene.regressed()

        def qualities(where: Where) -> list[Tensor]:
            found = [overlap(objects, scene.static.at(where))]
            if self.localize_to_classify:
                found.append(overlap(objects, regressed.at(where)))
            if self.classify_to_localize:
                score = scene.score_of_object(where)
                found.append(_amplified(found[0], score, self.sigma))
            return found

        contests = hold_contests(qualities, scene.labels, len(scene.anchors))
        if self.classify_to_localize:
            amplified = contests[-1]
            contests[-1] = amplified._replace(
                quality=(amplified.quality / self.sigma).exp2_(),
                peaks=(amplified.peaks / self.sigma).exp2_(),
            )
        claims = [
            claim_and_force(contest, lambda near, k=k: qualities(near)[k])  # type: ignore[misc]
            for k, contest in enumerate(contests)
        ]
        for_cls = claims[1] if self.localize_to_classify else claims[0]
        for_loc = claims[-1] if self.classify_to_localize else claims[0]
        return claims[0], for_cls, for_loc


def _amplified(overlap: Tensor, score: Tensor, sigma: float) -> Tensor:
    """sigma log2(Q) of Q = A^((sigma - p) / sigma), both (B, M, n); minus infinity where Q is 0.

    Ordered as Q is, for the price of a logarithm instead of a power; takes the memory of `score`.
    """
    # Logarithms of 0 are slow on CPUs, so that their infinity is made by a division.
    log = overlap.clamp(min=torch.finfo(overlap.dtype).tiny).log2_()
    return log.mul_(score.neg_().add_(sigma)).div_(overlap.sign())
