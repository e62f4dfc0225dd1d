"""The match table of an evaluation: objects, detections, and what matches what.

Every figure of an evaluation is computed from it, so that images need to be matched only once, on
the rank that predicted them. A table is a set of columns; tables of several ranks are concatenated.
A detection costs about 70 bytes, an object about 60.

Shape letters: N images, M objects, D detections, T the 10 IoU thresholds of COCO, A its 4 ranges of
area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (T,)
# Of the objects, in square pixels: all, small, medium, large.
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # (A,2)
MAX_DETECTIONS = 100  # that COCO counts, per image and class


@dataclass(frozen=True)
class Objects:
    """The objects of one image: boxes (M,4) xyxy in its pixels, the other columns (M,).

    Areas are in square pixels; those of segmented objects are smaller than their boxes.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    areas: NDArray[np.float64]


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image: boxes (D,4) xyxy in its own pixels, scores (D,), labels (D,)."""

    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class MatchTable:
    """Columns of images (N,), of their objects (M,...) and of their detections (D,...).

    Objects and detections are sorted by image; detections of an image by falling score. Indices of
    objects count within the table; -1 is none.
    """

    image_ids: NDArray[np.str_]
    object_image: NDArray[np.int32]
    object_label: NDArray[np.int32]
    object_box: NDArray[np.float32]  # (M,4) xyxy
    object_area: NDArray[np.float64]
    object_crowd: NDArray[np.bool_]
    object_difficult: NDArray[np.bool_]
    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: NDArray[np.float64]
    box: NDArray[np.float32]  # (D,4) xyxy
    rank: NDArray[np.int32]  # by score, among the detections of the image and class, from 0
    # COCO's matches, one bit per area range and IoU threshold: bit a * T + t.
    matched: NDArray[np.uint64]
    ignored: NDArray[np.uint64]
    coco_object: NDArray[np.int32]  # matched at IoU 0.5 over all areas
    same_class_iou: NDArray[np.float64]  # the highest with objects of the class; crowds as objects
    same_class_object: NDArray[np.int32]  # that object
    other_class_iou: NDArray[np.float64]  # the highest with objects of other classes
    other_class_object: NDArray[np.int32]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def object_ignored(self) -> NDArray[np.bool_]:
        """Return which objects (M,) count neither as found nor as missed."""
        return self.object_crowd | self.object_difficult

    def select(self, images: NDArray[np.integer]) -> MatchTable:
        """Return the table of some images, in the given order.

        Of an image that is given twice, indices of objects point to its last copy.
        """
        objects, object_image = _rows_of(self.object_image, images, self.images)
        detections, image = _rows_of(self.image, images, self.images)
        renumbered = np.full(len(self.object_image) + 1, -1, np.int32)  # the last is for -1
        renumbered[objects] = np.arange(len(objects))
        columns = {}
        for field in fields(self):
            column = getattr(self, field.name)
            if field.name == "image_ids":
                columns[field.name] = column[images]
            elif field.name.startswith("object_"):
                columns[field.name] = column[objects]
            elif field.name.endswith("_object"):
                columns[field.name] = renumbered[column[detections]]
            else:
                columns[field.name] = column[detections]
        return MatchTable(**{**columns, "object_image": object_image, "image": image})

    def sorted_by_image_id(self) -> MatchTable:
        """Return the table with its images in the order of their ids."""
        order = np.argsort(self.image_ids, kind="stable")
        return self if (order == np.arange(self.images)).all() else self.select(order)

    @classmethod
    def concatenate(cls, tables: Sequence[MatchTable]) -> MatchTable:
        """Return one table with the images of all tables, of which there must be at least one."""
        images = np.cumsum([0, *(table.images for table in tables)])
        objects = np.cumsum([0, *(len(table.object_image) for table in tables)])
        columns = {}
        for field in fields(cls):
            parts = [getattr(table, field.name) for table in tables]
            if field.name in ("image", "object_image"):
                parts = [part + np.int32(n) for part, n in zip(parts, images[:-1], strict=True)]
            elif field.name.endswith("_object"):
                parts = [
                    np.where(part < 0, -1, part + np.int32(n)).astype(np.int32)
                    for part, n in zip(parts, objects[:-1], strict=True)
                ]
            columns[field.name] = np.concatenate(parts)
        return cls(**columns)


def _rows_of(
    owner: NDArray[np.int32], images: NDArray[np.integer], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the rows of some images, in that order, and the new number of each row's image.

    ``owner`` is the sorted image of each row.
    """
    starts = np.searchsorted(owner, np.arange(count + 1))
    lengths = (starts[1:] - starts[:-1])[images]
    new = np.repeat(np.arange(len(images), dtype=np.int32), lengths)
    before = np.cumsum(lengths) - lengths
    rows = np.arange(lengths.sum()) + np.repeat(starts[images] - before, lengths)
    return rows, new
