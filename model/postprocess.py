"""From predictions to detections: the best candidates, decoded, then exact greedy NMS.

Plain torch, fixed shapes, no branch on data: whole batches run at once and nothing waits for the
device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import box_iou, decode

# Candidates resolved together: bounds memory by B x 128 x K instead of B x K x K.
TILE = 128


class Detections(NamedTuple):
    """Best first, padded at the end."""

    boxes: Tensor
    """(B, D, 4) pixels of the network's input, inside the image; padded by 0."""
    scores: Tensor
    """(B, D) padded by 0."""
    labels: Tensor
    """(B, D) int64, padded by -1."""


@torch.no_grad()
def postprocess(
    deltas: Tensor,
    logits: Tensor,
    anchors: Tensor,
    image_size: int,
    score_threshold: float = 0.01,
    nms_iou: float = 0.5,
    max_candidates: int = 1000,
    max_detections: int = 100,
) -> Detections:
    """Deltas (B, A, 4), logits (B, A, C), anchors (A, 4) -> Detections of D = max_detections.

    Of each image's (anchor, class) pairs the best `max_candidates` with at least `score_threshold`
    compete within their class. Equal scores rank by anchor, then class. Boxes that are empty inside
    the image are dropped.
    """
    scores, pair = _candidates(logits, max_candidates)
    anchor, labels = pair // logits.shape[-1], pair % logits.shape[-1]
    chosen = deltas.float().gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
    boxes = decode(chosen, anchors.float()[anchor]).nan_to_num(nan=0.0).clamp(0, image_size)
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    keep = nms(boxes, labels, (scores >= score_threshold) & solid, nms_iou)
    return _compact(boxes, scores, labels, keep, max_detections)


def _candidates(logits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Scores (B, K), best first, and indices (B, K) into the flat (anchor, class) pairs."""
    # Ranked by logit: equal logits may differ in the last bit of their sigmoid, and large ones all
    # saturate at 1. The sum turns -0 into 0.
    flat = logits.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    flat = flat.flatten(1) + 0.0
    pairs = flat.shape[1]
    # Bits of floats, those of negative ones flipped, are ordered as the floats are; the index in
    # the lower half makes every key unique, so that ties are broken alike on every device.
    bits = flat.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (ordered << 32) | torch.arange(pairs - 1, -1, -1, device=flat.device)
    pair = key.topk(min(most, pairs), dim=1).indices
    return flat.gather(1, pair).sigmoid(), pair


def nms(boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """(B, K) mask of boxes (B, K, 4), best first, that no better kept box of their class overlaps
    by more than the threshold. Boxes that are not `valid` (B, K) neither stay nor suppress.
    """
    keep = valid.clone()
    for start in range(0, boxes.shape[1], TILE):
        tile = slice(start, start + TILE)
        overlaps = box_iou(boxes[:, tile], boxes[:, start:]) > threshold
        overlaps &= labels[:, tile, None] == labels[:, None, start:]
        size = overlaps.shape[1]
        _resolve(keep[:, tile], overlaps[:, :, :size])
        suppressed = (overlaps[:, :, size:] & keep[:, tile, None]).any(1)
        keep[:, start + size :] &= ~suppressed
    return keep


def _resolve(keep: Tensor, overlaps: Tensor) -> None:
    """Greedy NMS inside one tile: clears entries of keep (B, T) by overlaps (B, T, T)."""
    free = ~overlaps.triu(1)
    for row in range(keep.shape[1] - 1):
        keep &= free[:, row] | ~keep[:, row, None]


def _compact(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, most: int) -> Detections:
    """The first `most` kept entries of (B, K), moved to the front and padded."""
    rank = keep.cumsum(1) - 1
    slot = torch.where(keep & (rank < most), rank, most)
    batch = len(keep)
    out_boxes = boxes.new_zeros(batch, most + 1, 4)
    out_boxes.scatter_(1, slot.unsqueeze(-1).expand(-1, -1, 4), boxes)
    out_scores = scores.new_zeros(batch, most + 1).scatter_(1, slot, scores)
    out_labels = labels.new_full((batch, most + 1), -1).scatter_(1, slot, labels)
    return Detections(out_boxes[:, :most], out_scores[:, :most], out_labels[:, :most])
