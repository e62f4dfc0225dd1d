"""Decide whether the long rows of a YOLO data set are polygons, or boxes with keypoints.

One row cannot tell: both are numbers between 0 and 1. Read as the other one, rows give wrong boxes.
Polygons are the commoner case, so that rows are keypoints only if they are unlikely as polygons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.values import decode_text
from pipeline.data.sources.yolo.description import Description

MAX_SURVEYED_FILES = 2000
MAX_SURVEYED_OUTLINES = 200
BOX = 5  # values in a row, with the class
MAX_QUADRILATERAL = 4  # vertices up to which an outline says little: any order is common
TOLERANCE = 0.01
# Shares of the rows that decide.
MOST, HALF, FEW = 0.9, 0.5, 0.1
MIN_ROWS = 3  # of which the distances of points say something
MAX_SLENDERNESS = 3.0  # the second vertex is so far from the first, in diameters of the others
MIN_CORRELATED, CORRELATED = 10, 0.8  # rows, and the correlation of neighbouring vertices

Verdict = Literal["keypoints", "polygons", "unclear"]


def find_keypoints(files: Files, labels: Sequence[str], about: Description) -> bool:
    """Return whether keypoints follow the box in a row, and report it in the description.

    Up to a limit of the label files are read, at regular intervals. Unclear rows are polygons,
    which is reported, too.
    """
    rows = _long_rows(files, labels[:: max(1, -(-len(labels) // MAX_SURVEYED_FILES))])
    verdict = _judge(np.array(rows, np.float64)) if rows else "polygons"
    if verdict == "polygons":
        return False
    reading = (
        "read as a box and keypoints; state kpt_shape in the YAML, or kpt_shape: null for polygons"
        if verdict == "keypoints"
        else "read as polygons, but they may be a box and keypoints; state kpt_shape in the YAML, "
        "or kpt_shape: null for polygons"
    )
    reason = f"kpt_shape is not stated, and all long rows have {len(rows[0])} values: {reading}"
    about.problems.append(
        Problem(file=about.file or files.location, kind="suspicious", reason=reason)
    )
    return verdict == "keypoints"


def _long_rows(files: Files, labels: Iterable[str]) -> list[list[float]]:
    """Return the rows with more than a box if all have the same length; otherwise none."""
    found: list[list[float]] = []
    for name in labels:
        try:
            lines = decode_text(files.read_bytes(name)).splitlines()
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


def _judge(rows: np.ndarray) -> Verdict:
    """Return what rows (M,L) of the same length are.

    A row of keypoints begins with a box in the image. The vertices of a polygon are an outline, and
    none of them is far from the others.
    """
    count, length = rows.shape
    triples = (length - BOX) % 3 == 0
    if length % 2 == 0:  # not pairs
        return "keypoints" if triples else "polygons"
    points = rows[:, 1:].reshape(count, -1, 2)  # (M,K,2)
    vertices = points.shape[1]
    closed = vertices > MAX_QUADRILATERAL - 1 and (points[:, 0] == points[:, -1]).all()
    if closed or _are_boxes(points[:, :2]).mean() < MOST:
        return "polygons"
    if triples and np.isin(rows[:, BOX + 2 :: 3], (0, 1, 2)).all():  # flags of visibility
        return "keypoints"
    outlines = points[:: -(-count // MAX_SURVEYED_OUTLINES)]
    faulty = np.array([not _is_outline(outline) for outline in outlines])
    if faulty.mean() >= HALF and faulty.sum() > 1:
        return "keypoints"
    near = _are_near(points).mean()
    distant = _are_distant(points).mean()
    if near >= MOST and distant >= MOST and count >= MIN_ROWS:
        return "keypoints"
    scattered = near < HALF and count >= MIN_ROWS
    # By chance, keypoints are an outline the more seldom, the more they are.
    outlined = faulty.mean() < FEW and count * (vertices - MAX_QUADRILATERAL) >= MAX_QUADRILATERAL
    if scattered or outlined or _are_parallelograms(points) or _are_correlated(points):
        return "polygons"
    return "unclear"


def _are_boxes(points: np.ndarray) -> np.ndarray:
    """Return which centres and sizes (M,2,2) are valid boxes in the image (M)."""
    centre, size = points[:, 0], points[:, 1]
    low, high = centre - size / 2, centre + size / 2
    valid: np.ndarray = (size > 0) & (low >= -TOLERANCE) & (high <= 1 + TOLERANCE)  # (M,2)
    return valid[:, 0] & valid[:, 1]


def _are_near(points: np.ndarray) -> np.ndarray:
    """Return which rows (M,K,2) have all points, unless they are absent, in their box (M)."""
    centre, size = points[:, :1], points[:, 1:2]  # (M,1,2)
    absent = (points[:, 2:] == 0).all(-1)  # (M,K-2)
    near = (np.abs(points[:, 2:] - centre) <= size / 2 + TOLERANCE).all(-1)
    return (near | absent).all(-1)


def _are_distant(points: np.ndarray) -> np.ndarray:
    """Return in which rows (M,K,2) the second point is too far away for a vertex (M)."""
    others = np.delete(points, 1, axis=1)
    diameter = np.linalg.norm(np.ptp(others, axis=1), axis=-1)
    distance = np.linalg.norm(points[:, 1] - points[:, 0], axis=-1)
    return distance > MAX_SLENDERNESS * diameter


def _are_parallelograms(points: np.ndarray) -> bool:
    """Return whether rows (M,K,2) are turned boxes: vertices in order around a parallelogram."""
    if points.shape[1] != MAX_QUADRILATERAL:
        return False
    gaps = np.abs(points[:, 0] - points[:, 1] + points[:, 2] - points[:, 3])  # (M,2)
    return bool((gaps <= TOLERANCE).all(-1).mean() >= MOST)


def _are_correlated(points: np.ndarray) -> bool:
    """Return whether the second point of rows (M,K,2) follows the first, unlike a box's size."""
    if len(points) < MIN_CORRELATED:
        return False
    first, second = (points[:, at] - points[:, at].mean(0) for at in (0, 1))  # (M,2)
    deviations = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    return bool((np.abs((first * second).sum(0)) > CORRELATED * deviations).all())


def _is_outline(points: np.ndarray) -> bool:
    """Return whether points (K,2) can be the vertices of a polygon, in order.

    Its sides do not cross, except that quadrilaterals may be written in any order, and few of its
    vertices are repeated. A point at 0, 0 far from the border is an absent keypoint.
    """
    absent = (points == 0).all(-1)  # (K)
    if absent[2:].any() and (points[~absent] > TOLERANCE).all():
        return False
    ring = points[(points != np.roll(points, -1, axis=0)).any(-1)]  # (N,2): without repetitions
    if len(ring) < max(3, len(points) // 2 + 1) or len(np.unique(ring, axis=0)) < len(ring):
        return False
    return len(points) <= MAX_QUADRILATERAL or not _sides_cross(ring)


def _sides_cross(ring: np.ndarray) -> bool:
    """Return whether any two sides of a closed line through points (N,2) cross."""
    start, end = ring, np.roll(ring, -1, axis=0)

    def side_of(point: np.ndarray) -> np.ndarray:
        """Return on which side of each line (rows) each point (columns) is (N,N)."""
        along, to = (end - start)[:, None], point[None] - start[:, None]
        return np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    separated = side_of(start) * side_of(end) < 0
    return bool((separated & separated.T).any())
