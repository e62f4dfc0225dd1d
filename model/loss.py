"""The training loss: assignment, class targets, offsets, normalisation."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .assign import BACKGROUND, IGNORED, Assigner, Assignment
from .boxes import box_coverage, decode, encode
from .detector import Predictions
from .losses import CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, balanced_l1, focal

# A background anchor that lies mostly in a crowd region may show an object nobody drew a box for.
CROWD_COVERAGE = 0.5


class DetectionLoss(nn.Module):
    """Class loss over classification positives, plus offset loss over localization positives.

    The answer has the same keys for every batch, with or without objects.
    """

    def __init__(
        self,
        assigner: Assigner,
        classification: str = "focal",
        alpha: float = 0.25,
        gamma: float = 1.0,
        localization: str = "balanced_l1",
        localization_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _known("classification loss", classification, CLASSIFICATION_LOSSES)
        _known("localization loss", localization, LOCALIZATION_LOSSES)
        self.assigner = assigner
        self.alpha = alpha
        self.gamma = gamma
        self.localization_weight = localization_weight

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
        with torch.autocast(pred.logits.device.type, enabled=False):
            deltas, logits = _at_least_float32(pred.deltas), _at_least_float32(pred.logits)
            gt_boxes, gt_labels = _one_object_at_least(gt_boxes, _masked(gt_labels, valid))
            assigned = self._assign(deltas, logits, anchors, gt_boxes, gt_labels)
            assigned = _ignore(assigned, anchors, ignore_boxes, valid)
            counts = _counts(assigned, gt_labels)
            if normalisers is None:
                normalisers = torch.stack([counts["positives_cls"], counts["positives_loc"]])
            cls_norm, loc_norm = normalisers.to(logits.dtype).clamp(min=1.0).unbind()
            loss_cls = self._classification(logits, assigned, gt_labels) / cls_norm
            loss_loc = _localization(deltas, assigned, anchors, gt_boxes) / loc_norm
            loss = loss_cls + self.localization_weight * loss_loc
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
        """Sum over all anchors (B, A) that are not ignored."""
        label = gt_labels.gather(1, assigned.cls_index.clamp(min=0))
        label = torch.where(assigned.cls_index >= 0, label, BACKGROUND)
        classes = torch.arange(logits.shape[-1], device=logits.device)
        loss = focal(logits, label.unsqueeze(-1) == classes, self.alpha, self.gamma)
        return (loss.sum(-1) * (assigned.cls_index != IGNORED)).sum()


def _localization(
    deltas: Tensor, assigned: Assignment, anchors: Tensor, gt_boxes: Tensor
) -> Tensor:
    """Weighted sum over localization positives of the mean loss of their four offsets."""
    positive = (assigned.loc_index >= 0).unsqueeze(-1)
    index = assigned.loc_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)
    target = encode(gt_boxes.to(deltas.dtype).gather(1, index), anchors.to(deltas.dtype))
    loss = balanced_l1(torch.where(positive, deltas, 0.0), torch.where(positive, target, 0.0))
    return (loss.mean(-1) * assigned.loc_weight).sum()


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


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} does not exist; choose from: {', '.join(known)}")
