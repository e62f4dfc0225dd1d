"""Run a detector over a shard set, and score it.

Each rank matches the images that it predicts; rank 0 gathers the match tables, some kilobytes per
image, and computes the metrics.

Shape letters: B images, D detections per image (padded), S input side.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import Detector
from model.postprocess import Detections, postprocess
from pipeline.config import EvaluateConfig
from pipeline.data import EvalBatch, Sample
from pipeline.distributed.precision import Precision, autocast
from pipeline.distributed.world import World
from pipeline.evaluation.protocol import score
from pipeline.metrics import (
    DetectionMetrics,
    ImageDetections,
    MatchTable,
    Objects,
    match_images,
)

_IMAGES_PER_TABLE = 64  # matched together
T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Where the time of an evaluation went: on rank 0, or summed over workers of Ray.

    ``predict`` includes reading the images, ``score`` gathering the tables.
    """

    predict: float = 0.0
    match: float = 0.0
    score: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on rank 0: the metrics, and what matches what in every image."""

    result: DetectionMetrics
    table: MatchTable
    seconds: Seconds = Seconds()


def evaluate(
    detector: Detector,
    batches: Iterable[EvalBatch],
    classes: list[str],
    config: EvaluateConfig,
    world: World,
    precision: Precision = "fp32",
    labels: LabelMaps | None = None,
) -> Evaluation | None:
    """Score a detector (in eval mode) on a shard set that is split over the ranks.

    ``precision`` is that of the network; post-processing is always float32.
    Every rank calls it with its own share; it returns the result on rank 0 and None on the others.
    Images are scored in the order of their ids: the metrics do not depend on the number of ranks.
    ``labels`` maps the labels of the set and of the detector to ``classes``, where they differ.
    """
    detected = Timed(detect(detector, batches, config, world.device, precision))
    own = match_detections(detected, labels)
    predicted = time.perf_counter()
    matching = detected.outside()
    parts = world.gather(own)
    if parts is None:
        return None
    table = MatchTable.concatenate(parts).sorted_by_image_id()
    result = score(table, classes, config.protocol)
    seconds = Seconds(detected.inside, matching, time.perf_counter() - predicted)
    return Evaluation(result, table, seconds)


class Timed(Iterator[T]):
    """An iterator that measures the seconds in it, and those in what consumes it."""

    def __init__(self, values: Iterable[T]) -> None:
        self._values, self._began = iter(values), time.perf_counter()
        self.inside = 0.0

    def __next__(self) -> T:
        began = time.perf_counter()
        try:
            return next(self._values)
        finally:
            self.inside += time.perf_counter() - began

    def outside(self) -> float:
        """Return the seconds since the start that were not spent in the iterator."""
        return time.perf_counter() - self._began - self.inside


class LabelMaps(NamedTuple):
    """The label among some classes of each label of a set and of a detector; -1 is left out."""

    data: NDArray[np.int64]
    detector: NDArray[np.int64]

    @classmethod
    def to(cls, classes: Sequence[str], data: Sequence[str], detector: Sequence[str]) -> LabelMaps:
        """Map by the names of the classes."""
        numbers = {name: number for number, name in enumerate(classes)}
        return cls(
            *(np.array([numbers.get(name, -1) for name in names]) for names in (data, detector))
        )


def match_detections(
    detected: Iterable[tuple[Sample, ImageDetections]], labels: LabelMaps | None = None
) -> MatchTable:
    """Return the match table of samples with their detections."""
    named = (
        (sample.image_id, *_mapped(objects_of(sample), found, labels)) for sample, found in detected
    )
    tables = []
    while some := list(islice(named, _IMAGES_PER_TABLE)):
        tables.append(match_images(some))
    return MatchTable.concatenate(tables) if tables else match_images([])


def _mapped(
    objects: Objects, found: ImageDetections, labels: LabelMaps | None
) -> tuple[Objects, ImageDetections]:
    if labels is None:
        return objects, found
    own, seen = labels.data[objects.labels], labels.detector[found.labels]
    kept, shown = own >= 0, seen >= 0
    return (
        Objects(
            objects.boxes[kept],
            own[kept],
            objects.crowd[kept],
            objects.difficult[kept],
            objects.areas[kept],
        ),
        ImageDetections(found.boxes[shown], found.scores[shown], seen[shown]),
    )


def objects_of(sample: Sample) -> Objects:
    """Return the objects of a sample as arrays."""
    return Objects(
        np.array(sample.boxes, np.float64).reshape(-1, 4),
        np.array(sample.labels, np.int64),
        np.array(sample.crowd, np.bool_),
        np.array(sample.difficult, np.bool_),
        np.array(sample.area, np.float64),
    )


@torch.no_grad()
def detect(
    detector: Detector,
    batches: Iterable[EvalBatch],
    config: EvaluateConfig,
    device: torch.device,
    precision: Precision = "fp32",
) -> Iterator[tuple[Sample, ImageDetections]]:
    """Yield each sample with its detections in pixels of the original image."""
    for batch in batches:
        images = batch.images.to(device, non_blocking=True)
        found = infer(detector, images, config, precision)
        scale = box_scale(batch.visible_sizes, batch.images.shape[-1]).to(device)  # (B,4)
        # Clip to the image: with a letterbox the input shows more.
        limits = batch.sizes.repeat(1, 2).float().to(device)  # (B,4)
        boxes = torch.minimum(found.boxes * scale[:, None], limits[:, None])  # (B,D,4)
        yield from zip(batch.samples, to_images(boxes, found), strict=True)


def infer(
    detector: Detector, images: Tensor, config: EvaluateConfig, precision: Precision = "fp32"
) -> Detections:
    """Return the detections (B,D) of images (B,3,S,S), with boxes in pixels of the input."""
    with autocast(images.device, precision):
        predictions = detector(images)
    return postprocess(
        predictions.deltas.float(),
        predictions.logits.float(),
        detector.anchors,
        images.shape[-1],
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        max_candidates=config.max_candidates,
        max_detections=config.max_detections,
        class_agnostic=config.class_agnostic,
    )


def box_scale(sizes: Tensor, side: int) -> Tensor:
    """Return the factors (B,4) from an input of this ``side`` to its visible ``sizes`` (B,2)."""
    return torch.cat([sizes, sizes], dim=1).float() / side


def to_images(boxes: Tensor, found: Detections) -> Iterator[ImageDetections]:
    """Yield the detections of each image, with ``boxes`` (B,D,4) and without the padding."""
    arrays = [value.cpu().numpy() for value in (boxes, found.scores, found.labels)]
    for box, scores, label in zip(*arrays, strict=True):
        kept = label >= 0
        yield ImageDetections(box[kept], scores[kept], label[kept].astype(np.int64))
