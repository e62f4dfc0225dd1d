"""Decide whether the long rows of a YOLO data set are polygons, or boxes with keypoints.

One row cannot tell: both are numbers between 0 and 1. Read as polygons, rows with keypoints give
wrong boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.yolo.description import Description

MAX_SURVEYED_FILES = 2000
BOX, QUADRILATERAL = 5, 9  # values in a row, with the class
MIN_CLOSED = 3  # points of a polygon that ends where it begins, besides the last
MIN_QUADRILATERALS = 3  # rows that must look like keypoints
TOLERANCE = 0.01


def find_keypoints(files: Files, labels: Sequence[str], about: Description) -> bool:
    """Return whether keypoints follow the box in a row, and report it in the description.

    Up to a limit of the label files are read, at regular intervals.
    """
    rows = _long_rows(files, labels[:: max(1, -(-len(labels) // MAX_SURVEYED_FILES))])
    if not rows or not _are_keypoints(np.array(rows, np.float64)):
        return False
    reason = (
        f"kpt_shape is not stated, and all long rows have {len(rows[0])} values: read as a box and "
        "keypoints; state kpt_shape in the YAML, or kpt_shape: null for polygons"
    )
    about.problems.append(
        Problem(file=about.file or files.location, kind="suspicious", reason=reason)
    )
    return True


def _long_rows(files: Files, labels: Iterable[str]) -> list[list[float]]:
    """Return the rows with more than a box if all have the same length; otherwise none."""
    found: list[list[float]] = []
    for name in labels:
        try:
            lines = files.read_bytes(name).decode("utf-8-sig").splitlines()
            rows = [[float(field) for field in line.split()] for line in lines]
        except (FileError, ValueError):
            continue  # reported when it is converted
        for row in rows:
            if len(row) <= BOX + 1 or not all(map(math.isfinite, row)):  # with a score, perhaps
                continue
            if found and len(row) != len(found[0]):
                return []
            found.append(row)
    return found


def _are_keypoints(rows: np.ndarray) -> bool:
    """Return whether keypoints follow a box in rows (M,L) of the same length.

    Rows of polygons differ in length, except for quadrilaterals. A row of keypoints begins with a
    box in the image.
    """
    length = rows.shape[1]
    if length % 2 == 0:  # not pairs
        return (length - BOX) % 3 == 0
    points = rows[:, 1:].reshape(len(rows), -1, 2)  # (M,K,2)
    closed = points.shape[1] > MIN_CLOSED and (points[:, 0] == points[:, -1]).all()
    if closed or not _inside(points[:, :2]):
        return False
    centre, size = points[:, :1], points[:, 1:2]  # (M,1,2)
    absent = (points[:, 2:] == 0).all(-1)  # (M,K)
    near = (np.abs(points[:, 2:] - centre) <= size / 2 + TOLERANCE).all(-1)
    if (near | absent).all() and (length != QUADRILATERAL or len(rows) >= MIN_QUADRILATERALS):
        return True
    return length > QUADRILATERAL and len(rows) > 1


def _inside(boxes: np.ndarray) -> bool:
    """Return whether all boxes, as centre and size (M,2,2), are valid and in the image."""
    centre, size = boxes[:, 0], boxes[:, 1]
    low, high = centre - size / 2, centre + size / 2
    return bool(((size > 0) & (low >= -TOLERANCE) & (high <= 1 + TOLERANCE)).all())
