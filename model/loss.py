"""The training loss: assignment, class targets, box targets, normalisation."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from .assign import BACKGROUND, IGNORED, Assigner, Assignment, StaticPart
from .boxes import box_coverage, decode, encode
from .detector import Predictions
from .losses import (
    CLASSIFICATION_LOSSES,
    LOCALIZATION_LOSSES,
    OVERLAP_LOSSES,
    focal,
    quality_focal,
)
from .options import LossOptions, check_class_weights

# A background anchor covered this far by a crowd region may show an object that has no box.
CROWD_COVERAGE = 0.5


class DetectionLoss(nn.Module):
    """Class loss over classification positives, plus box loss over localization positives.

    Any losses go with any assigner: `focal` gives every positive the target 1, `quality_focal` its
    `cls_quality`; box losses are averaged by `loc_weight`. The class loss is divided by the number
    of positives or, with `normaliser` "targets", by the sum of their targets, at least 1. An alpha
    or gamma of None is that of the chosen loss. `class_weights`, by the names in `classes`, are
    factors of the class loss of positives of a class; those of other classes have 1. Raises
    ValueError on unknown losses and classes and on options out of bounds.
    """

    class_weights: Tensor | None
    """(C,), or None if all are 1."""

    def __init__(
        self,
        assigner: Assigner,
        classification: str = LossOptions.classification,
        alpha: float | None = LossOptions.alpha,
        gamma: float | None = LossOptions.gamma,
        poly: float = LossOptions.poly,
        classification_weight: float = LossOptions.classification_weight,
        normaliser: str = LossOptions.normaliser,
        localization: str = LossOptions.localization,
        localization_weight: float = LossOptions.localization_weight,
        overlap: str = LossOptions.overlap,
        overlap_weight: float = LossOptions.overlap_weight,
        class_weights: Mapping[str, float] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.assigner = assigner
        self.options = LossOptions(
            classification=classification,
            alpha=alpha,
            gamma=gamma,
            poly=poly,
            classification_weight=classification_weight,
            normaliser=normaliser,
            localization=localization,
            localization_weight=localization_weight,
            overlap=overlap,
            overlap_weight=overlap_weight,
        )
        usual = CLASSIFICATION_LOSSES[classification]
        self.alpha = usual.alpha if alpha is None else alpha
        self.gamma = usual.gamma if gamma is None else gamma
        self.localization = LOCALIZATION_LOSSES[localization]
        self.overlap = OVERLAP_LOSSES[overlap]
        weights = class_weights or {}
        check_class_weights(weights, classes)
        by_class = torch.tensor([weights.get(name, 1.0) for name in classes]) if weights else None
        self.register_buffer("class_weights", by_class, persistent=False)  # (C,)

    def static_part(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        valid: Tensor | None = None,
        progress: float = 1.0,
    ) -> StaticPart | None:
        """Return what is known of the assignment before the predictions.

        Its positives, summed over the passes and ranks of a global batch, normalise each of its
        passes, and the gradient does not depend on how the batch is split. None if the positives
        depend on the predictions.
        """
        labels = _masked(gt_labels, valid)
        return self.assigner.static_part(anchors, gt_boxes, labels, progress=progress)

    def forward(
        self,
        pred: Predictions,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        ignore_boxes: Tensor | None = None,
        valid: Tensor | None = None,
        normalisers: Tensor | None = None,
        static: StaticPart | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return scalars: the loss (with gradient), its parts, and counts of positives and objects.

        Objects (B, M, 4) with labels (B, M) padded by -1; crowd regions (B, K, 4) padded by empty
        boxes; images with `valid` (B,) False are dropped; `normalisers` (2,), or None for the
        counts of this pass; `static` of `static_part`, or None to compute it here; `progress`, the
        step by the number of all steps, for assigners that change during training. The keys are the
        same for every batch, with or without objects.
        """
        with _no_autocast(pred.logits.device.type):
            # Assignment.
            deltas, logits = _at_least_float32(pred.deltas), _at_least_float32(pred.logits)
            gt_boxes, gt_labels = _pad_to_one_object(gt_boxes, _masked(gt_labels, valid))
            assigned = self._assign(deltas, logits, anchors, gt_boxes, gt_labels, static, progress)
            assigned = _ignore(assigned, anchors, ignore_boxes, valid)
            counts = _counts(assigned, gt_labels)
            # Normalisers; without positives there is nothing to divide.
            if normalisers is None:
                normalisers = self._normalisers(assigned, counts["positives_cls"])  # (2,)
            norms = torch.where(normalisers > 0, normalisers, 1.0).to(logits.dtype)
            cls_norm, loc_norm = norms.unbind()  # () each
            # Losses of both tasks.
            loss_cls = self._classification(logits, assigned, gt_labels) / cls_norm
            loss_loc = self._localization(deltas, assigned, anchors, gt_boxes) / loc_norm
            loss = loss_cls + loss_loc
        parts = {"loss_cls": loss_cls.detach(), "loss_loc": loss_loc.detach()}
        return {"loss": loss, **parts, **counts}

    @torch.no_grad()
    def _assign(
        self,
        deltas: Tensor,
        logits: Tensor,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        static: StaticPart | None,
        progress: float,
    ) -> Assignment:
        """Return what each anchor learns, (B, A)."""
        boxes = scores = None
        if self.assigner.uses_predictions:
            boxes, scores = decode(deltas, anchors), logits.sigmoid()
        return self.assigner(
            anchors, gt_boxes, gt_labels, boxes, scores, static=static, progress=progress
        )

    def _normalisers(self, assigned: Assignment, positives: Tensor) -> Tensor:
        """Return the normalisers of class and box loss of this pass, (2,).

        Static parts have the numbers of positives: their assigners have no other targets than 1.
        """
        weight = assigned.loc_weight.sum()  # ()
        cls_norm = positives.to(weight.dtype)  # ()
        if self.options.normaliser == "targets" and self.options.classification == "quality_focal":
            cls_norm = assigned.cls_quality.sum().clamp(min=1.0)  # ()
        return torch.stack([cls_norm, weight])  # (2,)

    def _classification(self, logits: Tensor, assigned: Assignment, gt_labels: Tensor) -> Tensor:
        """Return the weighted sum over all anchors that are not ignored, a scalar."""
        # Class of each anchor's object, one-hot.
        label = gt_labels.gather(1, assigned.cls_index.clamp(min=0))  # (B, A)
        label = torch.where(assigned.cls_index >= 0, label, BACKGROUND)
        classes = torch.arange(logits.shape[-1], device=logits.device)  # (C,)
        positive = label.unsqueeze(-1) == classes  # (B, A, C)
        # Loss of each score.
        if self.options.classification == "focal":
            loss = focal(logits, positive, self.alpha, self.gamma)
        else:
            target = positive * assigned.cls_quality.to(logits.dtype).unsqueeze(-1)  # (B, A, C)
            loss = quality_focal(logits, target, self.alpha, self.gamma, self.options.poly)
        # Sum without ignored anchors, with the weight of each positive's class.
        loss = loss.sum(-1) * (assigned.cls_index != IGNORED)  # (B, A)
        if self.class_weights is not None:
            loss = loss * torch.where(label >= 0, self.class_weights[label.clamp(min=0)], 1.0)
        total = loss.sum()  # ()
        return self.options.classification_weight * total

    def _localization(
        self, deltas: Tensor, assigned: Assignment, anchors: Tensor, gt_boxes: Tensor
    ) -> Tensor:
        """Return the weighted sum over localization positives, a scalar.

        Summed are the mean loss of the four offsets and the overlap loss of the boxes.
        """
        positive = (assigned.loc_index >= 0).unsqueeze(-1)  # (B, A, 1)
        # Box targets. All other anchors predict and learn themselves: no loss, gradient 0.
        index = assigned.loc_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)  # (B, A, 4)
        anchors = anchors.to(deltas.dtype)
        boxes = torch.where(positive, gt_boxes.to(deltas.dtype).gather(1, index), anchors)
        deltas = torch.where(positive, deltas, 0.0)
        target = torch.where(positive, encode(boxes, anchors), 0.0)
        # Loss of each anchor.
        loss = self.localization(deltas, target).mean(-1)  # (B, A)
        loss = self.options.localization_weight * loss
        if self.overlap is not None:
            overlap = self.overlap(decode(deltas, anchors), boxes)  # (B, A)
            loss = loss + self.options.overlap_weight * overlap
        return (loss * assigned.loc_weight).sum()  # ()


def _ignore(
    assigned: Assignment,
    anchors: Tensor,
    ignore_boxes: Tensor | None,
    valid: Tensor | None,
) -> Assignment:
    """Ignore background in crowd regions (B, K, 4) and all anchors of dropped images."""
    cls_index = assigned.cls_index
    if ignore_boxes is not None and ignore_boxes.shape[1] > 0:
        coverage = box_coverage(anchors, ignore_boxes.to(anchors.dtype)).amax(-1)  # (B, A)
        in_crowd = (coverage > CROWD_COVERAGE) & (cls_index == BACKGROUND)
        cls_index = torch.where(in_crowd, IGNORED, cls_index)
    if valid is not None:
        cls_index = torch.where(valid.unsqueeze(-1), cls_index, IGNORED)
    return assigned._replace(cls_index=cls_index)


def _counts(assigned: Assignment, gt_labels: Tensor) -> dict[str, Tensor]:
    """Return the numbers of positives, of objects, and of objects without classification positive,
    scalars."""
    is_object = gt_labels >= 0
    positive = assigned.cls_index >= 0
    anchors_per_object = torch.zeros_like(gt_labels).scatter_add_(
        1, assigned.cls_index.clamp(min=0), positive.to(gt_labels.dtype)
    )  # (B, M)
    return {
        "positives_cls": positive.sum(),
        "positives_loc": (assigned.loc_index >= 0).sum(),
        "objects": is_object.sum(),
        "objects_without_anchor": (is_object & (anchors_per_object == 0)).sum(),
    }


def _masked(gt_labels: Tensor, valid: Tensor | None) -> Tensor:
    """Return labels (B, M) with the objects of dropped images as padding."""
    if valid is None:
        return gt_labels
    return torch.where(valid.unsqueeze(-1), gt_labels, -1)


def _pad_to_one_object(gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return objects and labels with M at least 1, which gathers need."""
    if gt_labels.shape[1] > 0:
        return gt_boxes, gt_labels
    boxes = functional.pad(gt_boxes, (0, 0, 0, 1))  # (B, 1, 4)
    return boxes, functional.pad(gt_labels, (0, 1), value=-1)  # (B, 1)


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context of full precision, also for devices without autocast."""
    if not torch.amp.autocast_mode.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    """Return float64 as it is and anything else as float32."""
    return x if x.dtype == torch.float64 else x.float()
