"""From predictions to detections: the best candidates, decoded, then exact greedy NMS.

Plain torch, fixed shapes, no branch on data: whole batches run at once, nothing waits for the
device, and it exports together with a detector. Only candidates' boxes and scores are decoded.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

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
    class_agnostic: bool = False,
) -> Detections:
    """Deltas (B, A, 4), logits (B, A, C), anchors (A, 4) -> Detections of D = max_detections.

    Of each image's (anchor, class) pairs the best `max_candidates` with at least `score_threshold`
    compete within their class, or all with each other if `class_agnostic`. Equal scores rank by
    anchor, then class. Boxes that are empty inside the image are dropped.
    """
    scores, pair = _candidates(logits, max_candidates)
    anchor, labels = pair // logits.shape[-1], pair % logits.shape[-1]
    chosen = deltas.float().gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
    boxes = decode(chosen, anchors.float()[anchor]).nan_to_num(nan=0.0).clamp(0, image_size)
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    rivals = torch.zeros_like(labels) if class_agnostic else labels
    keep = nms(boxes, rivals, (scores >= score_threshold) & solid, nms_iou)
    return _compact(boxes, scores, labels, keep, max_detections)


def _candidates(logits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Scores (B, K), best first, and indices (B, K) into the flat (anchor, class) pairs."""
    # Ranked by logit: equal logits may differ in the last bit of their sigmoid, and large ones all
    # saturate at 1. The sum turns -0 into 0.
    logits = logits.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    classes = logits.shape[-1]
    # The best K pairs belong to the K anchors of the best pairs: each anchor before one of theirs
    # has a pair before it, ties included.
    anchor = _first(logits.amax(-1), torch.arange(logits.shape[1], device=logits.device), most)
    chosen = logits.gather(1, anchor.unsqueeze(-1).expand(-1, -1, classes)).flatten(1)
    pair = anchor.unsqueeze(-1) * classes + torch.arange(classes, device=logits.device)
    pair = pair.flatten(1)
    place = _first(chosen, pair, most)
    return chosen.gather(1, place).sigmoid(), pair.gather(1, place)


def _first(values: Tensor, index: Tensor, most: int) -> Tensor:
    """(B, K) places of the highest values (B, N), equal ones by their unique index (N,) or (B, N).

    Bits of floats, those of negative ones flipped, are ordered as the floats are; the index in the
    lower half makes every key unique, so that ties are broken alike on every device.
    """
    bits = values.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (ordered << 32) - index
    return key.topk(min(most, values.shape[1]), dim=1).indices


def nms(boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """(B, K) mask of boxes (B, K, 4), best first, that no better kept box of their class overlaps
    by more than the threshold. Boxes that are not `valid` (B, K) neither stay nor suppress.
    """
    if torch.compiler.is_compiling():
        return _nms_in_one_loop(boxes, labels, valid, threshold)
    keep = valid.clone()
    for start in range(0, boxes.shape[1], TILE):
        tile = slice(start, start + TILE)
        overlaps = _overlaps(boxes, labels, tile, slice(start, None), threshold)
        size = overlaps.shape[1]
        _resolve(keep[:, tile], overlaps[:, :, :size])
        suppressed = (overlaps[:, :, size:] & keep[:, tile, None]).any(1)
        keep[:, start + size :] &= ~suppressed
    return keep


def _overlaps(
    boxes: Tensor, labels: Tensor, these: slice, those: slice, threshold: float
) -> Tensor:
    """(B, n, m) which pairs of boxes of one class overlap by more than the threshold."""
    overlaps = box_iou(boxes[:, these], boxes[:, those]) > threshold
    return overlaps & (labels[:, these, None] == labels[:, None, those])


def _resolve(keep: Tensor, overlaps: Tensor) -> None:
    """Greedy NMS inside one tile: clears entries of keep (B, T) by overlaps (B, T, T)."""
    free = ~overlaps.triu(1)
    for row in range(keep.shape[1] - 1):
        keep &= free[:, row] | ~keep[:, row, None]


def _nms_in_one_loop(boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """The same for a compiled or exported graph, where a loop over K boxes is one node, not K.

    In eager mode it would be several times slower than tiles.
    """
    everything = slice(None)
    free = ~_overlaps(boxes, labels, everything, everything, threshold).triu(1)
    row = torch.arange(valid.shape[1], device=valid.device)

    def step(keep: Tensor, item: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        free_of_it, index = item
        kept = keep.gather(1, index.expand(keep.shape[0], 1))
        return keep & (free_of_it | ~kept), kept.new_zeros(())

    return scan(step, valid, (free.transpose(0, 1), row), dim=0)[0]


def _compact(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, most: int) -> Detections:
    """The first `most` kept entries of (B, K), moved to the front and padded."""
    rank = keep.cumsum(1) - 1
    slot = torch.where(keep & (rank < most), rank, most)
    batch = keep.shape[0]
    out_boxes = boxes.new_zeros(batch, most + 1, 4)
    out_boxes.scatter_(1, slot.unsqueeze(-1).expand(-1, -1, 4), boxes)
    out_scores = scores.new_zeros(batch, most + 1).scatter_(1, slot, scores)
    out_labels = labels.new_full((batch, most + 1), -1).scatter_(1, slot, labels)
    return Detections(out_boxes[:, :most], out_scores[:, :most], out_labels[:, :most])
