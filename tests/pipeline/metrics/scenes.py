"""Random images with objects and detections, and their match tables."""

from collections.abc import Iterable

import numpy as np

from pipeline.metrics import ImageDetections, MatchTable, Objects, match_images

Scene = tuple[str, Objects, ImageDetections]
SIDE = 200


def objects(
    boxes: Iterable = (), labels: Iterable = (), crowd: Iterable = (), difficult: Iterable = ()
) -> Objects:
    xyxy = np.array(list(boxes), np.float64).reshape(-1, 4)
    count = len(xyxy)
    return Objects(
        xyxy,
        np.array(list(labels), np.int64),
        np.array([*crowd] or [False] * count, np.bool_),
        np.array([*difficult] or [False] * count, np.bool_),
        (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]),
    )


def detections(
    boxes: Iterable = (), scores: Iterable = (), labels: Iterable = ()
) -> ImageDetections:
    return ImageDetections(
        np.array(list(boxes), np.float32).reshape(-1, 4),
        np.array(list(scores), np.float32),
        np.array(list(labels), np.int64),
    )


def table(*images: tuple[Objects, ImageDetections]) -> MatchTable:
    return match_images((f"{n:04d}", truth, found) for n, (truth, found) in enumerate(images))


def random_scenes(
    seed: int,
    images: int,
    classes: int,
    *,
    max_objects: int = 8,
    max_detections: int = 30,
    crowd: float = 0.0,
    difficult: float = 0.0,
    scores: int = 0,
) -> list[Scene]:
    """Return images of 200 pixels; with ``scores`` only that many distinct ones, so that some tie.

    Objects span all of COCO's area ranges; every second detection is near to an object.
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(images):
        count = int(rng.integers(0, max_objects + 1))
        corner = rng.uniform(0, SIDE - 10, (count, 2))
        boxes = np.concatenate([corner, corner + np.exp(rng.uniform(1.5, 5.2, (count, 2)))], 1)
        boxes = boxes.clip(0, SIDE).round(int(rng.integers(0, 3)))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = rng.integers(0, classes, count)
        truth = Objects(
            boxes,
            labels,
            rng.random(count) < crowd,
            rng.random(count) < difficult,
            (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * rng.choice([1.0, 0.6]),
        )
        found = int(rng.integers(0, max_detections + 1))
        corner = rng.uniform(0, SIDE - 50, (found, 2))
        guess = np.concatenate([corner, corner + rng.uniform(1, 50, (found, 2))], 1)
        label = rng.integers(0, classes, found)
        if count:
            near = rng.random(found) < 0.7
            source = rng.integers(0, count, found)
            shifted = boxes[source] + rng.normal(0, rng.choice([0.0, 1.0, 6.0]), (found, 4))
            guess[near], label[near] = shifted[near], labels[source][near]
        guess = guess.clip(0, SIDE)
        guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2])
        score = rng.random(found)
        if scores:
            score = (score * scores).round() / scores
        detected = ImageDetections(guess.astype(np.float32), score.astype(np.float32), label)
        scenes.append((f"{number:04d}", truth, detected))
    return scenes
