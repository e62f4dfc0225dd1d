"""Statistics of an assignment: sums that add up over batches and ranks, and figures from them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..boxes import box_iou
from .base import Assignment

# COCO's object sizes: square root of the area, in pixels of the network's input.
SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, float("inf"))}


@torch.no_grad()
def statistics_sums(
    assigned: Assignment,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    pred_boxes: Tensor,
    pred_scores: Tensor,
) -> dict[str, Tensor]:
    """Return float64 scalars of an assignment (B, A) of objects (B, M, 4), labels (B, M).

    Labels are padded by -1, M may be 0; `pred_boxes` (B, A, 4) are decoded, `pred_scores` (B, A, C)
    are after the sigmoid.
    """
    is_object = gt_labels >= 0
    # Positives per object and task.
    positives = {
        "cls": _anchors_per_object(assigned.cls_index, is_object),  # (B, M)
        "loc": _anchors_per_object(assigned.loc_index, is_object),  # (B, M)
    }
    # Objects without a positive.
    sums = {"objects": is_object.sum()}
    for task, count in positives.items():
        sums[f"missed_{task}"] = (is_object & (count == 0)).sum()
    # Objects and their positives by size.
    size = (gt_boxes[..., 2:] - gt_boxes[..., :2]).clamp(min=0).prod(-1).sqrt()  # (B, M)
    for name, (low, high) in SIZES.items():
        has_size = is_object & (size >= low) & (size < high)
        sums[f"objects_{name}"] = has_size.sum()
        for task, count in positives.items():
            sums[f"{task}_{name}"] = (count * has_size).sum()
    # Overlap of the tasks.
    classifies, regresses = assigned.cls_index >= 0, assigned.loc_index >= 0
    sums["both"] = (classifies & (assigned.cls_index == assigned.loc_index)).sum()
    sums["either"] = (classifies | regresses).sum()
    # Correlation of scores and IoUs, weighted by the number of positives.
    scores, ious = _scores_and_ious(
        assigned.cls_index, gt_boxes, gt_labels, pred_boxes, pred_scores
    )  # (N,) each
    sums["ranked"] = torch.tensor(len(scores), device=scores.device)
    sums["correlation"] = len(scores) * rank_correlation(scores, ious)
    return {name: value.double() for name, value in sums.items()}


def assignment_statistics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of `statistics_sums`, without those that have no data.

    - ``{cls,loc}_positives_per_object_{small,medium,large}``: means.
    - ``objects_without_{cls,loc}_positive``: share of objects.
    - ``task_overlap``: anchors that learn the same object in both tasks, as a share of those that
      learn one in either.
    - ``score_iou_correlation``: Spearman's, over classification positives, between an anchor's
      score for the class of its object and the IoU of its predicted box with that object.
    """
    ratios = {
        f"{task}_positives_per_object_{name}": (f"{task}_{name}", f"objects_{name}")
        for task in ("cls", "loc")
        for name in SIZES
    }
    ratios |= {
        "objects_without_cls_positive": ("missed_cls", "objects"),
        "objects_without_loc_positive": ("missed_loc", "objects"),
        "task_overlap": ("both", "either"),
        "score_iou_correlation": ("correlation", "ranked"),
    }
    return {
        name: sums[part] / sums[whole] for name, (part, whole) in ratios.items() if sums[whole] > 0
    }


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return Spearman's coefficient of two samples (N,); 0 if one of them does not vary.

    Equal values share their mean rank.
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    deviation = (a.square().sum() * b.square().sum()).sqrt()  # ()
    return torch.where(deviation > 0, (a * b).sum() / deviation.clamp(min=1e-12), 0.0)


def _ranks(x: Tensor) -> Tensor:
    """Return the ranks (N,) of a sample, from 1; a single 0 for an empty one."""
    if len(x) == 0:
        return x.new_zeros(1, dtype=torch.float64)
    _, value, count = x.unique(return_inverse=True, return_counts=True)  # (U,), (N,), (U,)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[value]  # (N,)


def _anchors_per_object(index: Tensor, is_object: Tensor) -> Tensor:
    """Return how many anchors (B, A) learn each object, (B, M)."""
    count = torch.zeros_like(is_object, dtype=torch.int64)
    if count.shape[1] == 0:
        return count
    return count.scatter_add_(1, index.clamp(min=0), (index >= 0).long())


def _scores_and_ious(
    index: Tensor, gt_boxes: Tensor, gt_labels: Tensor, pred_boxes: Tensor, pred_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores and IoUs, (N,) each, of the anchors (B, A) that learn an object's class."""
    image, anchor = (index >= 0).nonzero(as_tuple=True)  # (N,) each
    gt_index = index[image, anchor]  # (N,)
    boxes = pred_boxes[image, anchor].unsqueeze(1)  # (N, 1, 4)
    targets = gt_boxes[image, gt_index].to(boxes.dtype).unsqueeze(1)  # (N, 1, 4)
    iou = box_iou(boxes, targets).flatten()  # (N,)
    return pred_scores[image, anchor, gt_labels[image, gt_index]], iou
