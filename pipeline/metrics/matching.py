"""Match the detections of images to their objects, by COCO's rules and by highest IoU.

COCO matches greedily: the detections of an image and class choose in the order of their scores,
each the free object of the highest IoU, the last one among equals, at an IoU of at least the
threshold; an ignored object only if there is no other; crowd regions are never used up. That is
done for all IoU thresholds and area ranges. pycocotools does it in a loop over images and classes;
here the n-th detections of all images and classes choose at once, with the same result.

Shape letters: N images, K groups (an image and a class), D detections, G objects of a group
(padded), T IoU thresholds, A area ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.iou import Floats, pairwise_iou
from pipeline.metrics.table import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    ImageDetections,
    MatchTable,
    Objects,
)

_MAX_CELLS = 2_000_000  # of the arrays (K,A,T,G) of one pass
_SAME_PAD = 4  # groups with about as many objects share a pass: their number is padded to this


@dataclass
class _Group:
    """The detections of one class in one image, by falling score, and its objects."""

    rows: NDArray[np.int64]  # (D,) of the table
    iou: Floats  # (D,G), with COCO's rule for crowds
    objects: NDArray[np.int64]  # (G,) of the table


def match_images(
    images: Iterable[tuple[str, Objects, ImageDetections]],
) -> MatchTable:
    """Return the match table of images, each an id with its objects and detections."""
    ids: list[str] = []
    objects: list[Objects] = []
    found: list[ImageDetections] = []
    for name, truth, detected in images:
        order = np.argsort(-detected.scores, kind="stable")
        ids.append(name)
        objects.append(truth)
        found.append(
            ImageDetections(detected.boxes[order], detected.scores[order], detected.labels[order])
        )
    return _match(ids, objects, found)


def _match(ids: list[str], objects: list[Objects], found: list[ImageDetections]) -> MatchTable:
    object_counts = [len(image.labels) for image in objects]
    counts = [len(image.labels) for image in found]
    total = sum(counts)
    columns = _Columns(total)
    crowd = _joined([image.crowd for image in objects], np.bool_)
    difficult = _joined([image.difficult for image in objects], np.bool_)
    areas = _joined([image.areas for image in objects], np.float64)
    groups: list[_Group] = []
    first_object = first = 0
    for truth, detected in zip(objects, found, strict=True):
        groups += _match_best(columns, truth, detected, first, first_object)
        first += len(detected.labels)
        first_object += len(truth.labels)
    box = _joined([image.boxes for image in found], np.float32, 4)
    _match_coco(columns, groups, box, crowd, difficult, areas)
    return MatchTable(
        image_ids=np.array(ids, np.str_),
        object_image=np.repeat(np.arange(len(ids), dtype=np.int32), object_counts),
        object_label=_joined([image.labels for image in objects], np.int32),
        object_box=_joined([image.boxes for image in objects], np.float32, 4),
        object_area=areas,
        object_crowd=crowd,
        object_difficult=difficult,
        image=np.repeat(np.arange(len(ids), dtype=np.int32), counts),
        label=_joined([image.labels for image in found], np.int32),
        score=_joined([image.scores for image in found], np.float64),
        box=box,
        rank=columns.rank,
        matched=columns.matched,
        ignored=columns.ignored,
        coco_object=columns.coco_object,
        same_class_iou=columns.same_iou,
        same_class_object=columns.same_object,
        other_class_iou=columns.other_iou,
        other_class_object=columns.other_object,
    )


class _Columns:
    """The columns of detections that matching fills."""

    def __init__(self, count: int) -> None:
        self.rank = np.zeros(count, np.int32)
        self.matched = np.zeros(count, np.uint64)
        self.ignored = np.zeros(count, np.uint64)
        self.coco_object = np.full(count, -1, np.int32)
        self.same_iou = np.zeros(count)
        self.same_object = np.full(count, -1, np.int32)
        self.other_iou = np.zeros(count)
        self.other_object = np.full(count, -1, np.int32)


def _match_best(
    columns: _Columns, truth: Objects, found: ImageDetections, first: int, first_object: int
) -> list[_Group]:
    """Fill the highest IoUs of one image; return its groups that have objects."""
    count, objects = len(found.labels), len(truth.labels)
    if not count:
        return []
    rows = np.arange(first, first + count)
    columns.rank[rows] = _rank_in_class(found.labels)
    if not objects:
        return []
    plain = pairwise_iou(_xywh(found.boxes), _xywh(truth.boxes))  # (D,G)
    same = found.labels[:, None] == truth.labels[None, :]
    for own, iou, index in (
        (same, columns.same_iou, columns.same_object),
        (~same, columns.other_iou, columns.other_object),
    ):
        masked = np.where(own, plain, -1.0)
        best = masked.argmax(1)
        value = masked[np.arange(count), best]
        iou[rows] = np.maximum(value, 0.0)
        index[rows] = np.where(value > 0.0, first_object + best, -1)
    coco = plain
    if truth.crowd.any():
        coco = pairwise_iou(_xywh(found.boxes), _xywh(truth.boxes), truth.crowd)
    counted = columns.rank[rows] < MAX_DETECTIONS
    groups = []
    for label in np.intersect1d(found.labels, truth.labels):
        own_rows = np.flatnonzero((found.labels == label) & counted)
        own_objects = np.flatnonzero(truth.labels == label)
        iou_of_group = coco[np.ix_(own_rows, own_objects)]
        groups.append(_Group(first + own_rows, iou_of_group, first_object + own_objects))
    return groups


def _match_coco(
    columns: _Columns,
    groups: list[_Group],
    box: NDArray[np.float32],
    crowd: NDArray[np.bool_],
    difficult: NDArray[np.bool_],
    areas: Floats,
) -> None:
    widths = _xywh(box)
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


def _batches(groups: list[_Group]) -> Iterable[list[_Group]]:
    """Yield groups in passes of similar numbers of objects and of a limited size."""
    cells = len(AREA_RANGES) * len(IOU_THRESHOLDS)
    by_size: dict[int, list[_Group]] = {}
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
    columns: _Columns,
    groups: list[_Group],
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


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of earlier detections of the same class."""
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    starts = np.searchsorted(sorted_labels, sorted_labels)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts
    return rank


def _xywh(boxes: NDArray[np.floating]) -> Floats:
    """Convert xyxy, with widths and heights computed in the precision of the boxes."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)


def _joined(parts: list[NDArray], kind: type, width: int = 0) -> NDArray:
    if not parts:
        return np.zeros((0, width) if width else 0, kind)
    return np.concatenate(parts).astype(kind)
