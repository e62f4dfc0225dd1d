"""The baseline that the assigners are timed against: one image and one object at a time.

Mutual Guidance as detection code usually assigns: a loop over images, one IoU matrix per image, and
a loop over its objects, each of which takes its top anchors. Counts are read on the host for each
object. The assignment equals that of `model.assign` except for ties.
"""

import torch
from torch import Tensor

from model.assign import Assignment


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (N, K) of boxes (N, 4) and (K, 4)."""
    low = torch.max(boxes[:, None, :2], others[None, :, :2])
    high = torch.min(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=2)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).unsqueeze(1)
    other_area = ((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])).unsqueeze(0)
    return intersection / (area + other_area - intersection)


def stay_with_best_object(quality: Tensor) -> None:
    """Apply step 1 to qualities (M, A), in place."""
    for row in quality:
        row[row.argmax()] = 1.0
    quality[quality != quality.max(dim=0, keepdim=True).values] = 0.0


@torch.no_grad()
def mutual_guidance_loop(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    pred_boxes: Tensor,
    pred_scores: Tensor,
    sigma: float = 2.0,
    pos_threshold: float = 0.5,
    ignore_threshold: float = 0.4,
) -> Assignment:
    """Assign with the interface of an assigner."""
    shape = pred_boxes.shape[:2]
    cls_index = torch.full(shape, -1, device=anchors.device)
    loc_index = torch.full(shape, -1, device=anchors.device)
    for image in range(len(gt_boxes)):
        real = gt_labels[image] >= 0
        boxes, labels = gt_boxes[image, real], gt_labels[image, real]
        static = pairwise_iou(boxes, anchors)
        regressed = pairwise_iou(boxes, pred_boxes[image])
        scores = pred_scores[image].t()[labels]
        amplified = static ** ((sigma - scores) / sigma)
        for quality in (static, regressed, amplified):
            stay_with_best_object(quality)
        for index in range(len(boxes)):
            positives = int((static[index] >= pos_threshold).sum())
            ignored = int((static[index] >= ignore_threshold).sum())
            best = regressed[index].topk(ignored).indices
            cls_index[image, best[:positives]] = index
            cls_index[image, best[positives:]] = -2
            loc_index[image, amplified[index].topk(positives).indices] = index
    return Assignment(cls_index, (cls_index >= 0).float(), loc_index, (loc_index >= 0).float())
