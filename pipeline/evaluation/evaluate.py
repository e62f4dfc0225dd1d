"""Run a detector over a shard set, each rank over its share, and score the whole on rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import Detector
from model.postprocess import Detections, postprocess
from pipeline.config import EvaluateConfig
from pipeline.data import EvalBatch
from pipeline.distributed.world import World
from pipeline.evaluation.coco import CocoResult, ImageDetections, Scored, evaluate_coco


@dataclass(frozen=True)
class Evaluation:
    """What rank 0 knows after an evaluation: the figures and every image's detections."""

    result: CocoResult
    scored: list[Scored]


def evaluate(
    detector: Detector,
    batches: Iterable[EvalBatch],
    classes: list[str],
    config: EvaluateConfig,
    world: World,
) -> Evaluation | None:
    """Score a detector (in eval mode) on a set that is split over the ranks.

    Every rank calls it with its own share; rank 0 gets the result, the others None. Images are
    scored in the order of their ids, so the figures do not depend on the number of ranks.
    """
    own = list(detect(detector, batches, config, world.device))
    parts = world.gather(own)
    if parts is None:
        return None
    scored = sorted((item for part in parts for item in part), key=lambda item: item[0].image_id)
    return Evaluation(evaluate_coco(scored, classes), scored)


@torch.no_grad()
def detect(
    detector: Detector,
    batches: Iterable[EvalBatch],
    config: EvaluateConfig,
    device: torch.device,
) -> Iterator[Scored]:
    """Each sample with its detections in the original image's pixels."""
    for batch in batches:
        found = infer(detector, batch.images.to(device), config)
        scale = box_scale(batch.visible_sizes, batch.images.shape[-1]).to(device)
        limits = batch.sizes.repeat(1, 2).float().to(device)  # a letterbox shows more
        boxes = torch.minimum(found.boxes * scale[:, None], limits[:, None])
        yield from zip(batch.samples, _to_images(boxes, found), strict=True)


def infer(detector: Detector, images: Tensor, config: EvaluateConfig) -> Detections:
    """Detections (B, D) of images (B, 3, S, S), boxes in the input's pixels."""
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
    """Factors (B, 4) from the square input back to what it shows (B, 2) of width, height."""
    return torch.cat([sizes, sizes], dim=1).float() / side


def _to_images(boxes: Tensor, found: Detections) -> Iterator[ImageDetections]:
    arrays = [value.cpu().numpy() for value in (boxes, found.scores, found.labels)]
    for box, score, label in zip(*arrays, strict=True):
        kept = label >= 0
        yield ImageDetections(box[kept], score[kept], label[kept].astype(np.int64))
