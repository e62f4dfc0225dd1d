"""Log an evaluation to the run: images with boxes, precision-recall curves, metrics per class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.evaluation.evaluate import Evaluation
from pipeline.reports import Boxes, contact_sheet, pr_curves
from pipeline.tracking import Tracker

MIN_DRAWN_SCORE = 0.3  # weaker detections would hide the image

DrawnImage = tuple[np.ndarray, Boxes, Boxes]  # pixels (H,W,3), objects, detections


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
    metrics = {"metrics": result.metrics, "per_class": result.per_class}
    tracker.log_text(json.dumps(metrics, indent=1), f"evaluation/{split}.json")
    if result.per_class:
        curves = {
            name: result.precision[:, index]
            for index, name in enumerate(classes)
            if name in result.per_class
        }
        recall = np.linspace(0.0, 1.0, len(result.precision))
        tracker.log_figure(pr_curves(recall, curves), f"curves/{split}.png")
    images = dict(_drawn_images(evaluation, shards, len(classes), pictures))
    if images:
        sheet = contact_sheet(list(images.values()), classes, names=list(images))
        tracker.log_image(sheet, f"pictures/{split}.jpg")


def _drawn_images(
    evaluation: Evaluation, shards: ShardSet, classes: int, count: int
) -> Iterator[tuple[str, DrawnImage]]:
    """Yield the names of the first images of the set, with their objects and strong detections."""
    table = evaluation.table
    evaluated = {name: number for number, name in enumerate(table.image_ids.tolist())}
    for index in range(min(count, len(shards))):
        raw = shards.read(index)
        try:
            sample = parse_sample(raw, classes)
            image = decode_image(raw.image, upright=False)
        except ImageError:
            continue  # the evaluation has reported it
        if sample.image_id not in evaluated:
            continue
        own = table.image == evaluated[sample.image_id]
        strong = own & (table.score >= MIN_DRAWN_SCORE)
        objects = Boxes(np.array(sample.boxes).reshape(-1, 4), np.array(sample.labels, np.int64))
        detected = Boxes(table.box[strong], table.label[strong], table.score[strong])
        yield sample.file_name, (image, objects, detected)
