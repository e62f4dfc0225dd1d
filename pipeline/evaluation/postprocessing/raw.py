"""The predictions of a detector on a set before NMS, from which any detections can be made.

Shape letters: B images, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model import Detector
from model.postprocess import Candidates, candidates, suppress
from pipeline.config import EvaluateConfig
from pipeline.data import EvalBatch, Sample
from pipeline.distributed.precision import Precision, autocast
from pipeline.evaluation.evaluate import box_scale, to_images
from pipeline.metrics import ImageDetections


class _RawBatch(NamedTuple):
    """Candidates of some images, and the factors (B,4) and limits (B,4) to pixels of these."""

    found: Candidates
    samples: list[Sample]
    scale: Tensor
    limits: Tensor


class RawPredictions:
    """The candidates of each image of a set, in memory: about 30 bytes for each."""

    def __init__(self, batches: list[_RawBatch]) -> None:
        self._batches = batches

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(len(batch.samples) for batch in self._batches)

    def detections(
        self, nms_iou: float, class_agnostic: bool, max_detections: int
    ) -> Iterator[tuple[Sample, ImageDetections]]:
        """Yield each sample with the detections of these settings, as `detect` gives them."""
        for batch in self._batches:
            kept = suppress(batch.found, nms_iou, max_detections, class_agnostic)
            boxes = torch.minimum(kept.boxes * batch.scale[:, None], batch.limits[:, None])
            yield from zip(batch.samples, to_images(boxes, kept), strict=True)


@torch.no_grad()
def predict_raw(
    detector: Detector,
    batches: Iterable[EvalBatch],
    config: EvaluateConfig,
    device: torch.device,
    precision: Precision = "fp32",
) -> RawPredictions:
    """Run a detector (in eval mode) over a set and keep its candidates.

    Their scores are at least ``evaluate.score_threshold``.
    """
    raw = []
    for batch in batches:
        side = batch.images.shape[-1]
        with autocast(device, precision):
            predicted = detector(batch.images.to(device, non_blocking=True))
        found = candidates(
            predicted.deltas.float(),
            predicted.logits.float(),
            detector.anchors,
            side,
            config.score_threshold,
            config.max_candidates,
        )
        # Scores fall: what is behind the last one above the threshold is padding.
        count = int((found.scores >= config.score_threshold).sum(1).max())
        raw.append(
            _RawBatch(
                Candidates(*(value[:, :count].cpu().clone() for value in found)),
                batch.samples,
                box_scale(batch.visible_sizes, side),
                batch.sizes.repeat(1, 2).float(),
            )
        )
    return RawPredictions(raw)
