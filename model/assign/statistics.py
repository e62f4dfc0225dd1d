"""How healthy an assignment is: sums that add up over batches and ranks, and what they say."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..boxes import box_iou
from .base import Assignment

# COCO's sizes, sides in pixels of the network's input.
SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, float("inf"))}


@torch.no_grad()
def health_sums(
    assigned: Assignment,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    pred_boxes: Tensor,
    pred_scores: Tensor,
) -> dict[str, Tensor]:
    """Float64 scalars of an assignment (B, A) of objects (B, M, 4) with labels (B, M) padded by -1.

    `pred_boxes` (B, A, 4) decoded, `pred_scores` (B, A, C) after the sigmoid. M may be 0.
    """
    is_object = gt_labels >= 0
    size = (gt_boxes[..., 2:] - gt_boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    learns = {
        "cls": _anchors_per_object(assigned.cls_index, is_object),
        "loc": _anchors_per_object(assigned.loc_index, is_object),
    }
    sums = {"objects": is_object.sum()}
    for task, count in learns.items():
        sums[f"missed_{task}"] = (is_object & (count == 0)).sum()
    for name, (low, high) in SIZES.items():
        inside = is_object & (size >= low) & (size < high)
        sums[f"objects_{name}"] = inside.sum()
        for task, count in learns.items():
            sums[f"{task}_{name}"] = (count * inside).sum()
    classifies, regresses = assigned.cls_index >= 0, assigned.loc_index >= 0
    sums["both"] = (classifies & (assigned.cls_index == assigned.loc_index)).sum()
    sums["either"] = (classifies | regresses).sum()
    scores, ious = _positives(assigned.cls_index, gt_boxes, gt_labels, pred_boxes, pred_scores)
    sums["ranked"] = torch.tensor(len(scores), device=scores.device)
    sums["correlation"] = len(scores) * rank_correlation(scores, ious)
    return {name: value.double() for name, value in sums.items()}


def health(sums: Mapping[str, float]) -> dict[str, float]:
    """Figures from sums; one that nothing speaks for is left out.

    ``{cls,loc}_positives_per_object_{small,medium,large}``; ``objects_without_{cls,loc}_positive``
    and ``task_overlap`` (anchors that learn the same object in both tasks, of those that learn one
    in any) are shares; ``score_iou_correlation`` is Spearman's between the predicted score of an
    anchor's object and the IoU of its predicted box with it, over classification positives.
    """
    wanted = {
        f"{task}_positives_per_object_{name}": (f"{task}_{name}", f"objects_{name}")
        for task in ("cls", "loc")
        for name in SIZES
    }
    wanted |= {
        "objects_without_cls_positive": ("missed_cls", "objects"),
        "objects_without_loc_positive": ("missed_loc", "objects"),
        "task_overlap": ("both", "either"),
        "score_iou_correlation": ("correlation", "ranked"),
    }
    return {
        name: sums[part] / sums[whole] for name, (part, whole) in wanted.items() if sums[whole] > 0
    }


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's coefficient of two samples (N,), equal values sharing their ranks; 0 where one of
    them does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    spread = (a.square().sum() * b.square().sum()).sqrt()
    return torch.where(spread > 0, (a * b).sum() / spread.clamp(min=1e-12), 0.0)


def _ranks(x: Tensor) -> Tensor:
    if len(x) == 0:
        return x.new_zeros(1, dtype=torch.float64)
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


def _anchors_per_object(index: Tensor, is_object: Tensor) -> Tensor:
    """(B, M) how many anchors (B, A) learn each object."""
    count = torch.zeros_like(is_object, dtype=torch.int64)
    if count.shape[1] == 0:
        return count
    return count.scatter_add_(1, index.clamp(min=0), (index >= 0).long())


def _positives(
    index: Tensor, gt_boxes: Tensor, gt_labels: Tensor, pred_boxes: Tensor, pred_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores and IoUs (N,) of the anchors that learn to classify an object."""
    image, anchor = (index >= 0).nonzero(as_tuple=True)
    of = index[image, anchor]
    boxes = pred_boxes[image, anchor].unsqueeze(1)
    iou = box_iou(boxes, gt_boxes[image, of].to(boxes.dtype).unsqueeze(1)).flatten()
    return pred_scores[image, anchor, gt_labels[image, of]], iou
