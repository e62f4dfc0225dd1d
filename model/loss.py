"""The training loss: assignment, class targets, boxes, normalisation."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from .assign import BACKGROUND, IGNORED, Assigner, Assignment
from .boxes import box_coverage, decode, encode
from .detector import Predictions
from .losses import (
    CLASSIFICATION_LOSSES,
    LOCALIZATION_LOSSES,
    OVERLAP_LOSSES,
    focal,
    quality_focal,
)
from .options import LossOptions

# A background anchor that lies mostly in a crowd region may show an object nobody drew a box for.
CROWD_COVERAGE = 0.5


class DetectionLoss(nn.Module):
    """Class loss over classification positives, plus box loss over localization positives.

    Any losses go with any assigner: `focal` takes positives as they are, `quality_focal` learns
    their `cls_quality`; box losses are averaged by `loc_weight`. Alpha and gamma of None are those
    of the chosen loss. The answer has the same keys for every batch, with or without objects.
    """

    def __init__(
        self,
        assigner: Assigner,
        classification: str = LossOptions.classification,
        alpha: float | None = LossOptions.alpha,
        gamma: float | None = LossOptions.gamma,
        poly: float = LossOptions.poly,
        classification_weight: float = LossOptions.classification_weight,
        localization: str = LossOptions.localization,
        localization_weight: float = LossOptions.localization_weight,
        overlap: str = LossOptions.overlap,
        overlap_weight: float = LossOptions.overlap_weight,
    ) -> None:
        super().__init__()
        LossOptions(  # raises ValueError on a value out of bounds
            classification=classification,
            alpha=alpha,
            gamma=gamma,
            poly=poly,
            classification_weight=classification_weight,
            localization=localization,
            localization_weight=localization_weight,
            overlap=overlap,
            overlap_weight=overlap_weight,
        )
        usual = CLASSIFICATION_LOSSES[classification]
        self.assigner = assigner
        self.classification = classification
        self.alpha = usual.alpha if alpha is None else alpha
        self.gamma = usual.gamma if gamma is None else gamma
        self.poly = poly
        self.classification_weight = classification_weight
        self.localization = LOCALIZATION_LOSSES[localization]
        self.localization_weight = localization_weight
        self.overlap = OVERLAP_LOSSES[overlap]
        self.overlap_weight = overlap_weight

    def normalisers(
        self,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor | None:
        """(2,) positives of both tasks, where the assigner knows them before the predictions.

        Summed over the passes and ranks of a global batch they normalise each of its passes, so
        that the gradient does not depend on how the batch was split.
        """
        return self.assigner.expected_positives(anchors, gt_boxes, _masked(gt_labels, valid))

    def forward(
        self,
        pred: Predictions,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        ignore_boxes: Tensor | None = None,
        valid: Tensor | None = None,
        normalisers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalars: loss (with gradient) and its parts, and counts of what was assigned.

        Objects (B, M, 4) with labels (B, M) padded by -1; crowd regions (B, K, 4) padded by empty
        boxes; `valid` (B,) False drops an image; `normalisers` (2,), or None for this pass's own
        counts.
        """
        with _no_autocast(pred.logits.device.type):
            deltas, logits = _at_least_float32(pred.deltas), _at_least_float32(pred.logits)
            gt_boxes, gt_labels = _one_object_at_least(gt_boxes, _masked(gt_labels, valid))
            assigned = self._assign(deltas, logits, anchors, gt_boxes, gt_labels)
            assigned = _ignore(assigned, anchors, ignore_boxes, valid)
            counts = _counts(assigned, gt_labels)
            if normalisers is None:
                weight = assigned.loc_weight.sum()
                normalisers = torch.stack([counts["positives_cls"].to(weight.dtype), weight])
            # Without positives there is nothing to divide; weights may well sum to less than 1.
            norms = torch.where(normalisers > 0, normalisers, 1.0).to(logits.dtype)
            cls_norm, loc_norm = norms.unbind()
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
    ) -> Assignment:
        if not self.assigner.uses_predictions:
            return self.assigner(anchors, gt_boxes, gt_labels)
        boxes = decode(deltas, anchors)
        return self.assigner(anchors, gt_boxes, gt_labels, boxes, logits.sigmoid())

    def _classification(self, logits: Tensor, assigned: Assignment, gt_labels: Tensor) -> Tensor:
        """Weighted sum over all anchors (B, A) that are not ignored."""
        label = gt_labels.gather(1, assigned.cls_index.clamp(min=0))
        label = torch.where(assigned.cls_index >= 0, label, BACKGROUND)
        classes = torch.arange(logits.shape[-1], device=logits.device)
        positive = label.unsqueeze(-1) == classes
        if self.classification == "focal":
            loss = focal(logits, positive, self.alpha, self.gamma)
        else:
            target = positive * assigned.cls_quality.to(logits.dtype).unsqueeze(-1)
            loss = quality_focal(logits, target, self.alpha, self.gamma, self.poly)
        total = (loss.sum(-1) * (assigned.cls_index != IGNORED)).sum()
        return self.classification_weight * total

    def _localization(
        self, deltas: Tensor, assigned: Assignment, anchors: Tensor, gt_boxes: Tensor
    ) -> Tensor:
        """Sum over localization positives, by their weight, of the mean loss of their four offsets
        and of the overlap loss of their boxes."""
        positive = (assigned.loc_index >= 0).unsqueeze(-1)
        index = assigned.loc_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)
        # Elsewhere the anchor itself is predicted and wanted: no loss, and a gradient of zero.
        anchors = anchors.to(deltas.dtype)
        boxes = torch.where(positive, gt_boxes.to(deltas.dtype).gather(1, index), anchors)
        deltas = torch.where(positive, deltas, 0.0)
        target = torch.where(positive, encode(boxes, anchors), 0.0)
        loss = self.localization_weight * self.localization(deltas, target).mean(-1)
        if self.overlap is not None:
            loss = loss + self.overlap_weight * self.overlap(decode(deltas, anchors), boxes)
        return (loss * assigned.loc_weight).sum()


def _ignore(
    assigned: Assignment,
    anchors: Tensor,
    ignore_boxes: Tensor | None,
    valid: Tensor | None,
) -> Assignment:
    """Background in crowd regions (B, K, 4) and all anchors of dropped images become ignored."""
    cls_index = assigned.cls_index
    if ignore_boxes is not None and ignore_boxes.shape[1] > 0:
        covered = box_coverage(anchors, ignore_boxes.to(anchors.dtype)).amax(-1) > CROWD_COVERAGE
        cls_index = torch.where(covered & (cls_index == BACKGROUND), IGNORED, cls_index)
    if valid is not None:
        cls_index = torch.where(valid.unsqueeze(-1), cls_index, IGNORED)
    return assigned._replace(cls_index=cls_index)


def _counts(assigned: Assignment, gt_labels: Tensor) -> dict[str, Tensor]:
    """How many positives and objects there are, and objects no anchor learns to classify."""
    is_object = gt_labels >= 0
    positive = assigned.cls_index >= 0
    anchors_per_object = torch.zeros_like(gt_labels).scatter_add_(
        1, assigned.cls_index.clamp(min=0), positive.to(gt_labels.dtype)
    )
    return {
        "positives_cls": positive.sum(),
        "positives_loc": (assigned.loc_index >= 0).sum(),
        "objects": is_object.sum(),
        "objects_without_anchor": (is_object & (anchors_per_object == 0)).sum(),
    }


def _masked(gt_labels: Tensor, valid: Tensor | None) -> Tensor:
    """Labels (B, M) with the objects of dropped images turned into padding."""
    if valid is None:
        return gt_labels
    return torch.where(valid.unsqueeze(-1), gt_labels, -1)


def _one_object_at_least(gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch without any object gets a padded one, so that gathers have something to read."""
    if gt_labels.shape[1] > 0:
        return gt_boxes, gt_labels
    return functional.pad(gt_boxes, (0, 0, 0, 1)), functional.pad(gt_labels, (0, 1), value=-1)


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """Full precision, also on devices that know no other."""
    if not torch.amp.autocast_mode.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
