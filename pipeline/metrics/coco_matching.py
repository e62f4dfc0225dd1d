"""COCO's greedy matching of detections to objects, for many images and classes at once.

The detections of an image and class choose in the order of their scores, each the free object of
the highest IoU, the last one among equals, at an IoU of at least the threshold; an ignored object
only if there is no other; crowd regions are never used up. That is done for all IoU thresholds and
area ranges. pycocotools does it in a loop over images and classes; here the n-th detections of all
images and classes choose at once, with the same result.

Shape letters: K groups (an image and a class), D detections, G objects of a group (padded), T IoU
thresholds, A area ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.iou import Floats
from pipeline.metrics.table import AREA_RANGES, IOU_THRESHOLDS

_MAX_CELLS = 2_000_000  # of the arrays (K,A,T,G) of one pass
_SAME_PAD = 4  # groups with about as many objects share a pass: their number is padded to this


@dataclass
class Group:
    """Detections of one class in one image, by falling score, and its objects.

    Detections with an IoU of less than 0.5 with each of them may be left out.
    """

    rows: NDArray[np.int64]  # (D,) of the table
    iou: Floats  # (D,G), with COCO's rule for crowds
    objects: NDArray[np.int64]  # (G,) of the table


class Matches:
    """The columns of detections (D,) that COCO's matching fills."""

    def __init__(self, count: int) -> None:
        self.matched = np.zeros(count, np.uint64)
        self.ignored = np.zeros(count, np.uint64)
        self.coco_object = np.full(count, -1, np.int32)


def match_coco(
    columns: Matches,
    groups: list[Group],
    box: NDArray[np.float32],
    crowd: NDArray[np.bool_],
    difficult: NDArray[np.bool_],
    areas: Floats,
) -> None:
    """Fill the matches of detections, with boxes (D,4), by their groups.

    ``crowd``, ``difficult`` and ``areas`` are of all objects.
    """
    widths = xywh(box)
    area = widths[:, 2] * widths[:, 3]
    outside = np.stack([(area < low) | (area > high) for low, high in AREA_RANGES])  # (A,D)
    # Unmatched detections outside of an area range are ignored there, at every threshold.
    all_thresholds = np.uint64((1 << len(IOU_THRESHOLDS)) - 1)
    unmatched_ignored = np.zeros(len(area), np.uint64)
    for number, outside_one in enumerate(outside):
        shift = np.uint64(number * len(IOU_THRESHOLDS))
        unmatched_ignored |= outside_one.astype(np.uint64) * (all_thresholds << shift)
    for batch in _batches(groups):
        _match_groups(columns, batch, crowd, difficult, areas)
    columns.ignored |= unmatched_ignored & ~columns.matched


def _batches(groups: list[Group]) -> Iterable[list[Group]]:
    """Yield groups in passes of similar numbers of objects and of a limited size."""
    cells = len(AREA_RANGES) * len(IOU_THRESHOLDS)
    by_size: dict[int, list[Group]] = {}
    for group in groups:
        size = len(group.objects)
        padded = size if size <= _SAME_PAD else 1 << (size - 1).bit_length()
        by_size.setdefault(padded, []).append(group)
    for padded, members in by_size.items():
        members.sort(key=lambda group: -len(group.rows))
        step = max(1, _MAX_CELLS // (cells * padded))
        for start in range(0, len(members), step):
            yield members[start : start + step]


def _match_groups(
    columns: Matches,
    groups: list[Group],
    crowd: NDArray[np.bool_],
    difficult: NDArray[np.bool_],
    areas: Floats,
) -> None:
    """Match some groups, of which those with the most detections come first."""
    count, size = len(groups), max(len(group.objects) for group in groups)
    shape = (count, len(AREA_RANGES), len(IOU_THRESHOLDS), size)
    objects = np.full((count, size), -1)
    for number, group in enumerate(groups):
        objects[number, : len(group.objects)] = group.objects
    real = objects >= 0
    reusable = real & crowd[objects]
    ignore = np.zeros((count, len(AREA_RANGES), size), np.bool_)
    for number, (low, high) in enumerate(AREA_RANGES):
        beyond = (areas[objects] < low) | (areas[objects] > high)
        ignore[:, number] = crowd[objects] | difficult[objects] | beyond
    free = np.broadcast_to(real[:, None, None, :], shape).copy()
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]  # (T,1)
    bits = np.uint64(1) << np.arange(shape[1] * shape[2], dtype=np.uint64).reshape(shape[1:3])
    lengths = np.array([len(group.rows) for group in groups])
    for number in range(lengths[0]):
        active = int((lengths > number).sum())
        iou = np.zeros((active, size))
        rows = np.empty(active, np.int64)
        for index, group in enumerate(groups[:active]):
            iou[index, : len(group.objects)] = group.iou[number]
            rows[index] = group.rows[number]
        possible = free[:active] & (iou[:, None, None, :] >= thresholds)  # (K,A,T,G)
        allowed = ~ignore[:active, :, None, :]
        chosen, matched = _last_best(iou[:, None, None, :], possible & allowed)  # (K,A,T)
        fallback, found = _last_best(iou[:, None, None, :], possible & ~allowed)
        only_ignored = found & ~matched
        chosen = np.where(only_ignored, fallback, chosen)
        matched |= found
        k, a, t = np.nonzero(matched)
        free[k, a, t, chosen[k, a, t]] = reusable[k, chosen[k, a, t]]
        columns.matched[rows] = (matched * bits).sum((1, 2), dtype=np.uint64)
        columns.ignored[rows] = (only_ignored * bits).sum((1, 2), dtype=np.uint64)
        first = matched[:, 0, 0]
        columns.coco_object[rows] = np.where(first, objects[np.arange(active), chosen[:, 0, 0]], -1)


def _last_best(
    iou: Floats, possible: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the index of the last of the highest possible IoUs (K,A,T,G), and if there is one."""
    value = np.where(possible, iou, -1.0)
    chosen = possible.shape[-1] - 1 - value[..., ::-1].argmax(-1)
    return chosen, np.asarray(possible.any(-1))


def xywh(boxes: NDArray[np.floating]) -> Floats:
    """Convert xyxy, with widths and heights computed in the precision of the boxes."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)
