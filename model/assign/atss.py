"""ATSS (Zhang et al., CVPR 2020): an IoU threshold per object, from the anchors near it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..anchor_shapes import AnchorShapes
from ..options import ATSSOptions
from .base import Assigner, Assignment, StaticPart, hard_assignment, require_strides
from .conflicts import join_chunks, resolve_conflicts, stable_topk
from .inputs import AssignInputs
from .iou import centre_inside, pairwise_iou


@dataclass(frozen=True)
class ATSS(Assigner, ATSSOptions):
    """Takes the anchors near an object whose IoU is at least mean + std of the IoUs near it.

    The candidates of an object are all anchors of the `candidates` nearest cells of each level. An
    object gets no anchor if none of those taken has its centre inside. Plain loop version:
    `loops.atss`.
    """

    anchor_strides: Tensor | None = field(default=None, repr=False, compare=False)
    anchors_per_cell: int = field(default=AnchorShapes().per_cell, repr=False, compare=False)
    uses_predictions: ClassVar[bool] = False
    levels: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)
    """Indices of the anchors of each level."""

    def __post_init__(self) -> None:
        super().__post_init__()
        strides = require_strides("atss", self.anchor_strides)
        levels = ((strides == stride).nonzero().squeeze(1) for stride in strides.unique())
        object.__setattr__(self, "levels", tuple(levels))

    def assign(self, inputs: AssignInputs, static: StaticPart | None = None) -> Assignment:
        """Assign both tasks the same anchors; none is ignored."""
        if static is not None:
            assert isinstance(static.result, Assignment)
            return static.result
        cells = self._cell_centres(inputs.anchors)  # (A, 2)
        anchor, iou, positive = join_chunks(
            [self._choose(chunk, cells) for chunk in inputs.object_chunks()]
        )  # (B, M, k) each
        index, _ = resolve_conflicts(anchor, iou, positive, len(inputs.anchors))  # (B, A)
        return hard_assignment(index, index, inputs.dtype)

    def assign_static(self, inputs: AssignInputs) -> StaticPart:
        """Return the assignment, all of which is static."""
        assigned = self.assign(inputs)
        return StaticPart((assigned.cls_index >= 0).sum().to(inputs.dtype).repeat(2), assigned)

    def _cell_centres(self, anchors: Tensor) -> Tensor:
        """Return the centre of each anchor's cell, (A, 2).

        Centres of the anchors of a cell differ by rounding. Those of cells do not, so cells at the
        same distance tie exactly.
        """
        stride = require_strides("atss", self.anchor_strides).to(anchors).unsqueeze(1)  # (A, 1)
        return (((anchors[:, :2] + anchors[:, 2:]) / 2 / stride).floor() + 0.5) * stride  # (A, 2)

    def _choose(self, inputs: AssignInputs, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates of m objects, their IoU and whether they are positive, (B, m, k)
        each."""
        # Candidates: the anchors of the nearest cells of each level.
        nearest = [self._nearest(inputs.boxes, cells, level) for level in self.levels]
        anchor = torch.cat(nearest, -1)  # (B, m, k)
        objects, candidates = inputs.objects, inputs.static.select(anchor)
        # Positive: IoU of at least mean + std of the candidates, and the centre inside.
        iou = pairwise_iou(objects, candidates)  # (B, m, k)
        threshold = iou.mean(-1, keepdim=True) + iou.std(-1, keepdim=True)  # (B, m, 1)
        positive = (iou >= threshold) & (iou > 0) & centre_inside(objects, candidates)
        return anchor, iou, positive & (inputs.labels >= 0).unsqueeze(-1)

    def _nearest(self, boxes: Tensor, cells: Tensor, level: Tensor) -> Tensor:
        """Return the anchors of the cells of a level nearest to the objects' centres, (B, m, k)."""
        level = level.to(cells.device)  # (n,)
        centre = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(2) / 2  # (B, m, 1, 2)
        distance = (centre - cells[level]).square().sum(-1)  # (B, m, n)
        return level[stable_topk(distance, self.candidates * self.anchors_per_cell, largest=False)]
