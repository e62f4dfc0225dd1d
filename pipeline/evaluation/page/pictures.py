"""Pictures for the page: the worst and the best images, and labels that may be wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.samples import FoundSamples
from pipeline.metrics import MatchTable
from pipeline.metrics.errors import KINDS, NO_ERROR, detection_errors
from pipeline.metrics.suspects import Suspect
from pipeline.metrics.table import MAX_DETECTIONS
from pipeline.reports import draw_boxes

IMAGE_SIDE, CROP_SIDE = 540, 260
_QUALITY = 80
_CONTEXT = 1.0  # of a suspect's picture around its box, in sides of the box
_MIN_CONTEXT = 24.0  # pixels
# Okabe and Ito's blue, vermilion, orange and bluish green.
_CORRECT, _WRONG, _MISSED, _OTHER = (0, 114, 178), (213, 94, 0), (230, 159, 0), (0, 158, 115)


class ImageCounts(NamedTuple):
    """An image with its counts at a score threshold."""

    image: int
    correct: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """Return the F1 of the image, which has objects or detections."""
        return 2 * self.correct / (2 * self.correct + self.wrong + self.missed)


class Picture(NamedTuple):
    """A picture as data URIs; the second one is empty if there is one only."""

    source: str
    second: str
    name: str
    text: str


def rank_images(
    table: MatchTable, threshold: float, count: int
) -> tuple[list[ImageCounts], list[ImageCounts]]:
    """Return the images of the lowest and of the highest F1, which do not overlap.

    Of equal ones, those with the most errors or the most objects come first. Images with neither
    objects nor detections are left out.
    """
    shown, kinds = _shown(table, threshold), detection_errors(table)
    correct = shown & (table.coco_object >= 0) & (kinds == NO_ERROR) & ~_ignored(table)
    found = np.zeros(len(table.object_label) + 1, np.bool_)  # the last is for -1
    found[table.coco_object[correct]] = True
    missed = ~found[:-1] & ~table.object_ignored
    columns = [
        np.bincount(owner[rows], minlength=table.images)
        for owner, rows in (
            (table.image, correct),
            (table.image, shown & (kinds != NO_ERROR)),
            (table.object_image, missed),
        )
    ]
    counts = [
        ImageCounts(number, *row)
        for number, row in enumerate(np.stack(columns, 1).tolist())
        if any(row)
    ]
    worst = sorted(counts, key=lambda one: (one.f1, -one.wrong - one.missed))[:count]
    worst = [one for one in worst if one.f1 < 1]
    left = [one for one in counts if one not in worst]
    best = sorted(left, key=lambda one: (-one.f1, -one.correct))[:count]
    return worst, best


def draw_image(
    table: MatchTable,
    counts: ImageCounts,
    samples: FoundSamples,
    classes: Sequence[str],
    threshold: float,
) -> Picture:
    """Draw the objects and the detections of an image in two pictures.

    Found objects and correct detections are blue; what is not found or wrong is orange or vermilion
    and names its error.
    """
    image_id = str(table.image_ids[counts.image])
    small, factor = _shrink(samples.pixels(image_id), IMAGE_SIDE)
    kinds = detection_errors(table)
    shown = _shown(table, threshold) & ~_ignored(table)
    found = np.zeros(len(table.object_label) + 1, np.bool_)
    found[table.coco_object[shown & (kinds == NO_ERROR)]] = True
    objects = np.flatnonzero(table.object_image == counts.image)
    texts, colors = [], []
    for row in objects:
        name = classes[table.object_label[row]]
        missed = not found[row] and not table.object_ignored[row]
        texts.append(f"not found: {name}" if missed else name)
        colors.append(_MISSED if missed else _CORRECT)
    truth = draw_boxes(small, list(table.object_box[objects] * factor), texts, colors)
    rows = np.flatnonzero(shown & (table.image == counts.image))[::-1]
    texts, colors = [], []
    for row in rows:
        name, fine = f"{classes[table.label[row]]} {table.score[row]:.2f}", kinds[row] == NO_ERROR
        texts.append(name if fine else f"{KINDS[kinds[row]]}: {name}")
        colors.append(_CORRECT if fine else _WRONG)
    detected = draw_boxes(small, list(table.box[rows] * factor), texts, colors)
    text = f"F1 {counts.f1:.2f}: {counts.correct} correct, {counts.wrong} wrong, "
    return Picture(
        jpeg(truth),
        jpeg(detected),
        samples.samples[image_id].file_name,
        f"{text}{counts.missed} not found",
    )


def draw_suspect(
    table: MatchTable, suspect: Suspect, samples: FoundSamples, classes: Sequence[str]
) -> Picture:
    """Draw the surroundings of a label that may be wrong, with the objects that are near."""
    image_id = str(table.image_ids[suspect.image])
    pixels = samples.pixels(image_id)
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = suspect.box
    margin = max(_MIN_CONTEXT, _CONTEXT * max(x2 - x1, y2 - y1))
    left, top = (max(0, int(value - margin)) for value in (x1, y1))
    right, bottom = min(width, int(x2 + margin) + 1), min(height, int(y2 + margin) + 1)
    small, factor = _shrink(pixels[top:bottom, left:right], CROP_SIDE)
    offset = np.array([left, top, left, top], np.float64)
    near = np.flatnonzero(table.object_image == suspect.image)
    boxes = [(table.object_box[row] - offset) * factor for row in near if row != suspect.object]
    texts, colors = [""] * len(boxes), [_OTHER] * len(boxes)
    name = classes[suspect.label]
    if suspect.kind == "nothing there":
        text = f"labelled {name}, which no detection comes near to"
    elif suspect.kind == "wrong class":
        own = classes[table.object_label[suspect.object]]
        text = f"labelled {own}, detected as {name} {suspect.strength:.2f}"
    else:
        text = f"not labelled, detected as {name} {suspect.strength:.2f}"
    boxes.append((np.array(suspect.box) - offset) * factor)
    drawn = draw_boxes(small, boxes, [*texts, name], [*colors, _WRONG])
    return Picture(jpeg(drawn), "", samples.samples[image_id].file_name, text)


def jpeg(image: np.ndarray) -> str:
    """Return an image (H,W,3) uint8 as a data URI."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def within(pictures: Iterable[Picture], budget: int) -> tuple[list[Picture], int]:
    """Return the first pictures that together have at most ``budget`` bytes, and what is left."""
    kept = []
    for picture in pictures:
        size = len(picture.source) + len(picture.second)
        if size > budget:
            break
        budget -= size
        kept.append(picture)
    return kept, budget


def _shown(table: MatchTable, threshold: float) -> NDArray[np.bool_]:
    return (table.score >= threshold) & (table.rank < MAX_DETECTIONS)


def _ignored(table: MatchTable) -> NDArray[np.bool_]:
    return (table.ignored & np.uint64(1)).astype(np.bool_)


def _shrink(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    factor = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)), factor
