"""From predictions to detections: the best candidates, decoded, then exact greedy NMS.

Plain torch with fixed shapes and no branch on data: it runs on whole batches, without
synchronisation, and exports together with a detector. Only the boxes and scores of candidates are
decoded.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from .boxes import box_iou, decode

# Candidates per tile of NMS: bounds memory by B x 128 x K instead of B x K x K.
TILE = 128


class Detections(NamedTuple):
    """Best first, padded at the end."""

    boxes: Tensor
    """(B, D, 4) pixels of the network's input, inside the image; padded by 0."""
    scores: Tensor
    """(B, D) padded by 0."""
    labels: Tensor
    """(B, D) int64, padded by -1."""


class Candidates(NamedTuple):
    """What enters NMS, best first."""

    boxes: Tensor
    """(B, K, 4) pixels of the network's input, inside the image."""
    scores: Tensor
    """(B, K)"""
    labels: Tensor
    """(B, K) int64"""
    valid: Tensor
    """(B, K) of at least the score threshold, and not empty."""


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
    """Return the D = max_detections best of deltas (B, A, 4), logits (B, A, C), anchors (A, 4).

    Of each image's (anchor, class) pairs, the best `max_candidates` of at least `score_threshold`
    enter NMS: within their class, or all together if `class_agnostic`. Equal scores are ordered by
    anchor, then class. Boxes that are empty inside the image are dropped.
    """
    found = candidates(deltas, logits, anchors, image_size, score_threshold, max_candidates)
    return suppress(found, nms_iou, max_detections, class_agnostic)


@torch.no_grad()
def candidates(
    deltas: Tensor,
    logits: Tensor,
    anchors: Tensor,
    image_size: int,
    score_threshold: float,
    max_candidates: int,
) -> Candidates:
    """Return the K best pairs of each image, the first half of `postprocess`."""
    # The best (anchor, class) pairs.
    scores, pair = _best_pairs(logits, max_candidates)  # (B, K) each
    anchor, labels = pair // logits.shape[-1], pair % logits.shape[-1]
    # Their boxes, clipped to the image.
    index = anchor.unsqueeze(-1).expand(-1, -1, 4)  # (B, K, 4)
    candidate_deltas = deltas.float().gather(1, index)  # (B, K, 4)
    boxes = decode(candidate_deltas, anchors.float()[anchor])  # (B, K, 4)
    boxes = boxes.nan_to_num(nan=0.0).clamp(0, image_size)
    not_empty = (boxes[..., 2:] > boxes[..., :2]).all(-1)  # (B, K)
    return Candidates(boxes, scores, labels, (scores >= score_threshold) & not_empty)


@torch.no_grad()
def suppress(
    found: Candidates, nms_iou: float, max_detections: int, class_agnostic: bool
) -> Detections:
    """Return the D best of the candidates (B, K) that survive NMS, the second half of it."""
    groups = torch.zeros_like(found.labels) if class_agnostic else found.labels
    keep = nms(found.boxes, groups, found.valid, nms_iou)  # (B, K)
    return _compact(found.boxes, found.scores, found.labels, keep, max_detections)


def _best_pairs(logits: Tensor, max_candidates: int) -> tuple[Tensor, Tensor]:
    """Return scores, best first, and flat (anchor, class) indices of K candidates, both (B, K)."""
    # Rank by logit: equal logits may differ in the last bit of their sigmoid, and large ones all
    # saturate at 1. Adding 0 turns -0 into 0.
    logits = logits.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    num_classes = logits.shape[-1]
    # The K anchors with the best logits contain the K best pairs: each anchor that ranks higher
    # than the anchor of a pair has a pair that ranks higher, ties included.
    all_anchors = torch.arange(logits.shape[1], device=logits.device)  # (A,)
    anchor = _topk(logits.amax(-1), all_anchors, max_candidates)  # (B, K)
    index = anchor.unsqueeze(-1).expand(-1, -1, num_classes)  # (B, K, C)
    values = logits.gather(1, index).flatten(1)  # (B, K x C)
    # The K best pairs of these anchors.
    pair = anchor.unsqueeze(-1) * num_classes + torch.arange(num_classes, device=logits.device)
    pair = pair.flatten(1)  # (B, K x C)
    best = _topk(values, pair, max_candidates)  # (B, K)
    return values.gather(1, best).sigmoid(), pair.gather(1, best)


def _topk(values: Tensor, index: Tensor, k: int) -> Tensor:
    """Return the positions (B, K) of the highest values (B, N), K at most k.

    Equal values are ordered by their unique index, (N,) or (B, N). As integers, the bits of floats
    have the order of the floats once those of negative ones are flipped. With the index in the
    lower half every key is unique, so ties are broken in the same way on every device.
    """
    bits = values.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (ordered << 32) - index
    return key.topk(min(k, values.shape[1]), dim=1).indices  # (B, K)


def nms(boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Return the mask (B, K) of boxes (B, K, 4), best first, that survive NMS within their class.

    A box is suppressed if its IoU with a better box that survives is above the threshold. Boxes
    that are not `valid` (B, K) neither survive nor suppress.
    """
    if torch.compiler.is_compiling():
        return _nms_by_scan(boxes, labels, valid, threshold)
    keep = valid.clone()
    for start in range(0, boxes.shape[1], TILE):
        # Overlaps of a tile of T boxes with itself and all lower boxes.
        tile = slice(start, start + TILE)
        overlaps = _overlaps(boxes, labels, tile, slice(start, None), threshold)  # (B, T, T + n)
        size = overlaps.shape[1]
        # NMS within the tile; then its survivors suppress lower boxes.
        _suppress_within(keep[:, tile], overlaps[:, :, :size])
        suppressed = (overlaps[:, :, size:] & keep[:, tile, None]).any(1)  # (B, n)
        keep[:, start + size :] &= ~suppressed
    return keep


def _overlaps(
    boxes: Tensor, labels: Tensor, rows: slice, columns: slice, threshold: float
) -> Tensor:
    """Return which pairs of boxes of one class have an IoU above the threshold, (B, n, m)."""
    overlaps = box_iou(boxes[:, rows], boxes[:, columns]) > threshold  # (B, n, m)
    return overlaps & (labels[:, rows, None] == labels[:, None, columns])


def _suppress_within(keep: Tensor, overlaps: Tensor) -> None:
    """Clear the suppressed entries of keep (B, T) by overlaps (B, T, T), in place."""
    compatible = ~overlaps.triu(1)
    for row in range(keep.shape[1] - 1):
        keep &= compatible[:, row] | ~keep[:, row, None]


def _nms_by_scan(boxes: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Do the same in a compiled or exported graph, where a scan over K boxes is one node, not K.

    In eager mode it is several times slower than tiles.
    """
    everything = slice(None)
    overlaps = _overlaps(boxes, labels, everything, everything, threshold)  # (B, K, K)
    compatible = ~overlaps.triu(1)
    row = torch.arange(valid.shape[1], device=valid.device)  # (K,)

    def step(keep: Tensor, item: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        compatible_with_row, index = item  # (B, K), ()
        kept = keep.gather(1, index.expand(keep.shape[0], 1))  # (B, 1)
        return keep & (compatible_with_row | ~kept), kept.new_zeros(())

    return scan(step, valid, (compatible.transpose(0, 1), row), dim=0)[0]


def _compact(
    boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, max_detections: int
) -> Detections:
    """Move the first D kept entries of (B, K) to the front, and pad to D."""
    rank = keep.cumsum(1) - 1
    # The extra entry D takes all others.
    slot = torch.where(keep & (rank < max_detections), rank, max_detections)  # (B, K)
    batch = keep.shape[0]
    out_boxes = boxes.new_zeros(batch, max_detections + 1, 4)
    out_boxes.scatter_(1, slot.unsqueeze(-1).expand(-1, -1, 4), boxes)  # (B, D + 1, 4)
    out_scores = scores.new_zeros(batch, max_detections + 1).scatter_(1, slot, scores)
    out_labels = labels.new_full((batch, max_detections + 1), -1).scatter_(1, slot, labels)
    return Detections(
        out_boxes[:, :max_detections],  # (B, D, 4)
        out_scores[:, :max_detections],  # (B, D)
        out_labels[:, :max_detections],  # (B, D)
    )
