"""Run a detector over a shard set, each rank on its share, and score all of it on rank 0.

Shape letters: B images, D detections per image (padded), S input side.
"""

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
from pipeline.distributed.precision import Precision, autocast
from pipeline.distributed.world import World
from pipeline.evaluation.coco import CocoResult, ImageDetections, ScoredImage, evaluate_coco


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on rank 0: the metrics and the detections of every image."""

    result: CocoResult
    scored: list[ScoredImage]


def evaluate(
    detector: Detector,
    batches: Iterable[EvalBatch],
    classes: list[str],
    config: EvaluateConfig,
    world: World,
    precision: Precision = "fp32",
) -> Evaluation | None:
    """Score a detector (in eval mode) on a shard set that is split over the ranks.

    ``precision`` is that of the network; post-processing is always float32.
    Every rank calls it with its own share; it returns the result on rank 0 and None on the others.
    Images are scored in the order of their ids: the metrics do not depend on the number of ranks.
    """
    own = list(detect(detector, batches, config, world.device, precision))
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
    precision: Precision = "fp32",
) -> Iterator[ScoredImage]:
    """Yield each sample with its detections in pixels of the original image."""
    for batch in batches:
        images = batch.images.to(device, non_blocking=True)
        found = infer(detector, images, config, precision)
        scale = box_scale(batch.visible_sizes, batch.images.shape[-1]).to(device)  # (B,4)
        # Clip to the image: with a letterbox the input shows more.
        limits = batch.sizes.repeat(1, 2).float().to(device)  # (B,4)
        boxes = torch.minimum(found.boxes * scale[:, None], limits[:, None])  # (B,D,4)
        yield from zip(batch.samples, _to_images(boxes, found), strict=True)


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


def _to_images(boxes: Tensor, found: Detections) -> Iterator[ImageDetections]:
    # Without the padding, whose labels are -1.
    arrays = [value.cpu().numpy() for value in (boxes, found.scores, found.labels)]
    for box, score, label in zip(*arrays, strict=True):
        kept = label >= 0
        yield ImageDetections(box[kept], score[kept], label[kept].astype(np.int64))
