"""ATSS (Zhang et al., CVPR 2020): a threshold for each object, from the anchors near it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..anchors import ANCHORS_PER_CELL
from ..options import ATSSOptions
from .base import (
    Assigner,
    Assignment,
    check_strides,
    hard_assignment,
)
from .conflicts import first_k, in_chunks, settle
from .inputs import Scene
from .iou import centre_inside, overlap


@dataclass(frozen=True)
class ATSS(Assigner, ATSSOptions):
    """Positive are those of the nearest anchors that overlap an object by mean + std of theirs.

    The candidates of an object are all anchors of the `candidates` nearest cells of each level. An
    object may be left without an anchor, when none of them has its centre inside.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)
    uses_predictions: ClassVar[bool] = False
    levels: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        strides = check_strides("atss", self.anchor_strides)
        levels = ((strides == stride).nonzero().squeeze(1) for stride in strides.unique())
        object.__setattr__(self, "levels", tuple(levels))

    def assign(self, scene: Scene) -> Assignment:
        """See `Assigner`; predictions are not looked at. Both tasks learn the same anchors."""
        cells = self._cells(scene.anchors)
        near, merit, chosen = in_chunks(lambda part: self._choose(part, cells), scene)
        index, _ = settle(near, merit, chosen, len(scene.anchors))
        return hard_assignment(index, index, scene.dtype)

    def count(self, scene: Scene) -> Tensor:
        """(2,) positives of both tasks; exact."""
        return (self.assign(scene).cls_index >= 0).sum().to(scene.dtype).repeat(2)

    def _cells(self, anchors: Tensor) -> Tensor:
        """(A, 2) centre of the cell each anchor lies in.

        Centres of anchors in one cell differ by their rounding; those of cells do not, so that
        cells at the same distance tie exactly.
        """
        stride = check_strides("atss", self.anchor_strides).to(anchors).unsqueeze(1)
        return (((anchors[:, :2] + anchors[:, 2:]) / 2 / stride).floor() + 0.5) * stride

    def _choose(self, scene: Scene, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors near m objects, their IoU, and which are positive, all (B, m, k)."""
        near = torch.cat([self._nearest(scene.boxes, cells, level) for level in self.levels], -1)
        objects, candidates = scene.objects, scene.static.at(near)
        iou = overlap(objects, candidates)
        threshold = iou.mean(-1, keepdim=True) + iou.std(-1, keepdim=True)
        positive = (iou >= threshold) & (iou > 0) & centre_inside(objects, candidates)
        return near, iou, positive & (scene.labels >= 0).unsqueeze(-1)

    def _nearest(self, boxes: Tensor, cells: Tensor, level: Tensor) -> Tensor:
        """(B, m, k) anchors of the cells of one level that are nearest to the objects' centres."""
        level = level.to(cells.device)
        centre = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(2) / 2
        distance = (centre - cells[level]).square().sum(-1)
        return level[first_k(distance, self.candidates * ANCHORS_PER_CELL, largest=False)]
