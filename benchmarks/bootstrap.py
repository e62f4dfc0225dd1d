"""Time of scoring and of the gate's bootstrap, compared with pycocotools.

    python -m benchmarks.bootstrap                     # one core; about 5 minutes
    python -m benchmarks.bootstrap --images 200 --resamples 20 --no-save   # a smoke run

Two models of random quality on 5,000 images of 80 classes, about 36,000 objects and 100 detections
an image. Matching, metrics and the evaluation of pycocotools run in turn on the same detections;
faster-coco-eval too, where it is installed. The paired bootstrap is timed as a whole.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics import ImageDetections, MatchTable, Objects, coco_metrics, match_images
from pipeline.metrics.bootstrap import paired_bootstrap

RESULTS = Path(__file__).parent / "results" / "bootstrap.json"
CLASSES, WIDTH, HEIGHT = 80, 640, 480
Scene = tuple[str, Objects, ImageDetections]


def make_scenes(images: int, noise: float, seed: int) -> list[Scene]:
    """Return images with up to 14 objects and up to 200 detections, most of them near objects.

    The objects depend on the number of images alone; ``noise`` is that of boxes in pixels.
    """
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    scenes = []
    for number in range(images):
        count = int(truth.integers(1, 15))
        corner = truth.uniform(0, [WIDTH - 10, HEIGHT - 10], (count, 2))
        sides = np.exp(truth.uniform(1.0, 5.5, (count, 2)))
        boxes = np.concatenate([corner, np.minimum(corner + sides, [WIDTH, HEIGHT])], 1)
        labels = truth.integers(0, CLASSES, count)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        none = np.zeros(count, np.bool_)
        found = int(rng.integers(1, 201))
        source = rng.integers(0, count, found)
        guess = boxes[source] + rng.normal(0, noise, (found, 4))
        guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2] + 1)
        label = np.where(rng.random(found) < 0.8, labels[source], rng.integers(0, CLASSES, found))
        scores = rng.random(found).astype(np.float32)
        objects = Objects(boxes, labels, none, none, area)
        detected = ImageDetections(guess.astype(np.float32), scores, label)
        scenes.append((f"{number:06d}", objects, detected))
    return scenes


def coco_inputs(scenes: list[Scene]) -> tuple[dict[str, Any], np.ndarray]:
    """Return the data set of pycocotools, and the rows that its ``loadRes`` takes."""
    annotations, rows = [], []
    for number, (_, truth, found) in enumerate(scenes, start=1):
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        for box, side, label, area in zip(
            truth.boxes, sides, truth.labels, truth.areas, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [*box[:2].tolist(), *side.tolist()],
                    "area": float(area),
                    "iscrowd": 0,
                }
            )
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        columns = [found.boxes[:, :2], sides, found.scores, found.labels + 1]
        rows.append(np.column_stack([np.full(len(found.labels), number), *columns]))
    images = [{"id": n + 1, "width": WIDTH, "height": HEIGHT} for n in range(len(scenes))]
    categories = [{"id": number + 1, "name": str(number)} for number in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content, np.concatenate(rows).astype(np.float64)


def evaluate_with(coco: Any, evaluation: Any, content: dict[str, Any], rows: np.ndarray) -> Any:
    """Return COCO's metrics by a library with the interface of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = content
        truth.createIndex()
        run = evaluation(truth, truth.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:12]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def measure(images: int, resamples: int, repetitions: int) -> dict[str, Any]:
    """Time everything on one core."""
    torch.set_num_threads(1)
    names = [str(number) for number in range(CLASSES)]
    scenes = make_scenes(images, 6.0, 1)
    content, rows = coco_inputs(scenes)
    alternatives: dict[str, Callable[[], Any]] = {
        "match tables": lambda: coco_metrics(match_images(scenes), names).metrics,
        "pycocotools": lambda: evaluate_with(COCO, COCOeval, content, rows),
    }
    if importlib.util.find_spec("faster_coco_eval"):
        fast = importlib.import_module("faster_coco_eval")  # not a dependency
        alternatives["faster-coco-eval"] = lambda: evaluate_with(
            fast.COCO, fast.COCOeval_faster, content, rows
        )
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    values: dict[str, Any] = {}
    for _ in range(repetitions):
        for name, call in alternatives.items():
            spent, values[name] = timed(call)
            seconds[name].append(spent)
    ours = list(values["match tables"].values())
    table, other = match_images(scenes), match_images(make_scenes(images, 7.0, 2))
    gate_seconds, gain = timed(lambda: paired_bootstrap(table, other, CLASSES, resamples=resamples))
    interval = gain.interval()
    return {
        "images": images,
        "objects": len(table.object_label),
        "detections": len(table.label),
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "times_as_fast_as": {
            name: statistics.median(
                slow / own for slow, own in zip(times, seconds["match tables"], strict=True)
            )
            for name, times in seconds.items()
            if name != "match tables"
        },
        "equal_bits": {
            name: bool(np.array_equal(np.asarray(value), np.asarray(ours)))
            for name, value in values.items()
            if name != "match tables"
        },
        "bytes_per_image": table_bytes(table) / images,
        "paired_bootstrap": {
            "resamples": resamples,
            "seconds": gate_seconds,
            "gain": [interval.value, interval.low, interval.high],
        },
    }


def table_bytes(table: MatchTable) -> int:
    """Return the memory of a match table."""
    return sum(column.nbytes for column in vars(table).values())


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    result = {
        "hardware": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **measure(options.images, options.resamples, options.repetitions),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if not options.no_save:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
