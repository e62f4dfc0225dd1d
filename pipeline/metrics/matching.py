"""Match the detections of images to their objects, by COCO's rules and by highest IoU.

Shape letters: D detections, G objects of an image or group.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.coco_matching import Group, Matches, match_coco, xywh
from pipeline.metrics.iou import pairwise_iou
from pipeline.metrics.table import (
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    ImageDetections,
    MatchTable,
    Objects,
)


def match_images(
    images: Iterable[tuple[str, Objects, ImageDetections]],
) -> MatchTable:
    """Return the match table of images, each an id with its objects and detections."""
    return Overlaps(images).match()


class Overlaps:
    """The overlaps of all detections of some images with their objects.

    `match` gives the match table of some of the detections, so that overlaps are computed once for
    several choices, as different settings of NMS make them.
    """

    def __init__(self, images: Iterable[tuple[str, Objects, ImageDetections]]) -> None:
        """Measure the overlaps of images, each an id with its objects and detections."""
        ids: list[str] = []
        objects: list[Objects] = []
        found: list[ImageDetections] = []
        for name, truth, detected in images:
            order = np.argsort(-detected.scores, kind="stable")
            ids.append(name)
            objects.append(truth)
            found.append(
                ImageDetections(
                    detected.boxes[order], detected.scores[order], detected.labels[order]
                )
            )
        object_counts = [len(image.labels) for image in objects]
        counts = [len(image.labels) for image in found]
        self._best = _Best(sum(counts))
        self._groups: list[Group] = []
        first_object = first = 0
        for truth, detected in zip(objects, found, strict=True):
            self._groups += _overlaps_of_image(self._best, truth, detected, first, first_object)
            first += len(detected.labels)
            first_object += len(truth.labels)
        numbers = np.arange(len(ids), dtype=np.int32)
        self._of_objects = {
            "image_ids": np.array(ids, np.str_),
            "object_image": np.repeat(numbers, object_counts),
            "object_label": _joined([image.labels for image in objects], np.int32),
            "object_box": _joined([image.boxes for image in objects], np.float32, 4),
            "object_area": _joined([image.areas for image in objects], np.float64),
            "object_crowd": _joined([image.crowd for image in objects], np.bool_),
            "object_difficult": _joined([image.difficult for image in objects], np.bool_),
        }
        self._of_detections = {
            "image": np.repeat(numbers, counts),
            "label": _joined([image.labels for image in found], np.int32),
            "score": _joined([image.scores for image in found], np.float64),
            "box": _joined([image.boxes for image in found], np.float32, 4),
            "same_class_iou": self._best.same_iou,
            "same_class_object": self._best.same_object,
            "other_class_iou": self._best.other_iou,
            "other_class_object": self._best.other_object,
        }

    def match(self, kept: NDArray[np.bool_] | None = None) -> MatchTable:
        """Return the match table of all detections, or of those in a mask (D,).

        Detections are numbered as they were given, those of an image by falling score.
        """
        chosen, groups = self._of_detections, self._groups
        if kept is not None:
            chosen = {name: column[kept] for name, column in chosen.items()}
            number = np.cumsum(kept) - 1  # (D,) among those that are kept
            groups = [_chosen(group, kept, number) for group in groups]
        rank = _rank_in_class(chosen["image"], chosen["label"])
        counted = rank < MAX_DETECTIONS
        groups = [_chosen(group, counted) for group in groups]
        matches = Matches(len(rank))
        match_coco(
            matches,
            [group for group in groups if len(group.rows)],
            chosen["box"],
            self._of_objects["object_crowd"],
            self._of_objects["object_difficult"],
            self._of_objects["object_area"],
        )
        return MatchTable(
            **self._of_objects,
            **chosen,
            rank=rank,
            matched=matches.matched,
            ignored=matches.ignored,
            coco_object=matches.coco_object,
        )


class _Best:
    """The highest IoUs of detections (D,) with objects of their class, and of others."""

    def __init__(self, count: int) -> None:
        self.same_iou = np.zeros(count)
        self.same_object = np.full(count, -1, np.int32)
        self.other_iou = np.zeros(count)
        self.other_object = np.full(count, -1, np.int32)


def _overlaps_of_image(
    best: _Best, truth: Objects, found: ImageDetections, first: int, first_object: int
) -> list[Group]:
    """Fill the highest IoUs of one image; return its groups in which something may match."""
    count, objects = len(found.labels), len(truth.labels)
    if not count or not objects:
        return []
    rows = np.arange(first, first + count)
    plain = pairwise_iou(xywh(found.boxes), xywh(truth.boxes))  # (D,G)
    same = found.labels[:, None] == truth.labels[None, :]
    for own, iou, index in (
        (same, best.same_iou, best.same_object),
        (~same, best.other_iou, best.other_object),
    ):
        masked = np.where(own, plain, -1.0)
        highest = masked.argmax(1)
        value = masked[np.arange(count), highest]
        iou[rows] = np.maximum(value, 0.0)
        index[rows] = np.where(value > 0.0, first_object + highest, -1)
    coco = plain
    if truth.crowd.any():
        coco = pairwise_iou(xywh(found.boxes), xywh(truth.boxes), truth.crowd)
    # Most detections are too far from the objects of their class to match at any threshold.
    near = ((coco >= IOU_THRESHOLDS[0]) & same).any(1)
    groups = []
    for label in np.unique(found.labels[near]):
        own_rows = np.flatnonzero((found.labels == label) & near)
        own_objects = np.flatnonzero(truth.labels == label)
        iou_of_group = coco[np.ix_(own_rows, own_objects)]
        groups.append(Group(first + own_rows, iou_of_group, first_object + own_objects))
    return groups


def _chosen(
    group: Group, mask: NDArray[np.bool_], number: NDArray[np.int64] | None = None
) -> Group:
    """Return the detections of a group that are in a mask, under their new numbers if given."""
    own = mask[group.rows]
    rows = group.rows[own]
    return Group(rows if number is None else number[rows], group.iou[own], group.objects)


def _rank_in_class(image: NDArray[np.int32], label: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the number of earlier detections (D,) of the same image and class."""
    order = np.lexsort((label, image))  # stable
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(image[order]) != 0) | (np.diff(label[order]) != 0)
    position = np.arange(len(order))
    rank = np.empty(len(order), np.int32)
    rank[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    return rank


def _joined(parts: list[NDArray], kind: type, width: int = 0) -> NDArray:
    if not parts:
        return np.zeros((0, width) if width else 0, kind)
    return np.concatenate(parts).astype(kind)
