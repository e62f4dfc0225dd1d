"""What the run shows of an evaluation: pictures, curves and figures per class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports import Boxes, contact_sheet, pr_curves
from pipeline.tracking import Tracker

DRAWN_SCORE = 0.3  # weaker detections would hide the picture

Pair = tuple[np.ndarray, Boxes, Boxes]


def report_evaluation(
    tracker: Tracker,
    split: str,
    evaluation: Evaluation,
    shards: ShardSet,
    classes: Sequence[str],
    pictures: int,
) -> None:
    """Add ``pictures/SPLIT.jpg``, ``curves/SPLIT.png`` and ``evaluation/SPLIT.json`` to the run."""
    result = evaluation.result
    figures = {"metrics": result.metrics, "per_class": result.per_class}
    tracker.log_text(json.dumps(figures, indent=1), f"evaluation/{split}.json")
    if result.per_class:
        curves = {
            name: result.precision[:, index]
            for index, name in enumerate(classes)
            if name in result.per_class
        }
        recall = np.linspace(0.0, 1.0, len(result.precision))
        tracker.log_figure(pr_curves(recall, curves), f"curves/{split}.png")
    pairs = dict(_pairs(evaluation, shards, len(classes), pictures))
    if pairs:
        sheet = contact_sheet(list(pairs.values()), classes, names=list(pairs))
        tracker.log_image(sheet, f"pictures/{split}.jpg")


def _pairs(
    evaluation: Evaluation, shards: ShardSet, classes: int, count: int
) -> Iterator[tuple[str, Pair]]:
    """The first images of the set, with their objects and the detections worth drawing."""
    detections = {sample.image_id: found for sample, found in evaluation.scored}
    for index in range(min(count, len(shards))):
        raw = shards.read(index)
        try:
            sample = parse_sample(raw, classes)
            image = decode_image(raw.image, upright=False)
        except ImageError:
            continue  # the evaluation has named it already
        if sample.image_id not in detections:
            continue
        found = detections[sample.image_id]
        strong = found.scores >= DRAWN_SCORE
        truth = Boxes(np.array(sample.boxes).reshape(-1, 4), np.array(sample.labels, np.int64))
        drawn = Boxes(found.boxes[strong], found.labels[strong], found.scores[strong])
        yield sample.file_name, (image, truth, drawn)
