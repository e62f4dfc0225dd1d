"""The predictions of a detector on a set before NMS, from which any detections can be made.

Shape letters: N images, M objects, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import Detector
from model.postprocess import Candidates, candidates
from pipeline.config import EvaluateConfig
from pipeline.data import EvalBatch
from pipeline.distributed.precision import Precision, autocast
from pipeline.evaluation.evaluate import box_scale, objects_of
from pipeline.metrics import ImageDetections, Objects


@dataclass(frozen=True)
class RawPredictions:
    """Columns of images (N,...), of their objects (M,...) and of their candidates (K,...).

    A candidate takes 24 bytes. Those of an image are in the order in which NMS considers them.
    """

    image_ids: NDArray[np.str_]
    scale: NDArray[np.float32]  # (N,4) from pixels of the network's input to those of the image
    limit: NDArray[np.float32]  # (N,4) highest coordinates in the image
    objects: NDArray[np.int32]  # how many the image has
    candidates: NDArray[np.int32]  # how many the image has
    object_box: NDArray[np.float64]  # (M,4) xyxy in pixels of the image
    object_label: NDArray[np.int32]
    object_crowd: NDArray[np.bool_]
    object_difficult: NDArray[np.bool_]
    object_area: NDArray[np.float64]
    box: NDArray[np.float32]  # (K,4) xyxy in pixels of the network's input
    score: NDArray[np.float32]
    label: NDArray[np.int32]

    def detections(self) -> Iterator[tuple[str, Objects, ImageDetections]]:
        """Yield each image's id and objects with all of its candidates, in pixels of the image."""
        image = np.repeat(np.arange(len(self.image_ids)), self.candidates)
        boxes = np.minimum(self.box * self.scale[image], self.limit[image])  # (K,4)
        labels, object_labels = self.label.astype(np.int64), self.object_label.astype(np.int64)
        ends, object_ends = np.cumsum(self.candidates), np.cumsum(self.objects)
        for number, name in enumerate(self.image_ids):
            own = slice(ends[number] - self.candidates[number], ends[number])
            rows = slice(object_ends[number] - self.objects[number], object_ends[number])
            objects = Objects(
                self.object_box[rows],
                object_labels[rows],
                self.object_crowd[rows],
                self.object_difficult[rows],
                self.object_area[rows],
            )
            yield str(name), objects, ImageDetections(boxes[own], self.score[own], labels[own])


@torch.no_grad()
def predict_raw(
    detector: Detector,
    batches: Iterable[EvalBatch],
    config: EvaluateConfig,
    device: torch.device,
    precision: Precision = "fp32",
) -> RawPredictions:
    """Run a detector (in eval mode) over a set and keep its candidates.

    Their scores are at least ``evaluate.score_threshold``. ``precision`` is that of the network.
    """
    found: list[Candidates] = []  # without padding, one for each image
    ids: list[str] = []
    objects: list[Objects] = []
    scales: list[Tensor] = []
    limits: list[Tensor] = []
    for batch in batches:
        side = batch.images.shape[-1]
        with autocast(device, precision):
            predicted = detector(batch.images.to(device, non_blocking=True))
        padded = candidates(
            predicted.deltas.float(),
            predicted.logits.float(),
            detector.anchors,
            side,
            config.score_threshold,
            config.max_candidates,
        )
        values = Candidates(*(value.cpu() for value in padded))
        for number, valid in enumerate(values.valid):
            found.append(Candidates(*(value[number][valid] for value in values)))
        ids += [sample.image_id for sample in batch.samples]
        objects += [objects_of(sample) for sample in batch.samples]
        scales.append(box_scale(batch.visible_sizes, side))
        limits.append(batch.sizes.repeat(1, 2).float())
    return _columns(ids, objects, found, scales, limits)


def _columns(
    ids: list[str],
    objects: list[Objects],
    found: list[Candidates],
    scales: list[Tensor],
    limits: list[Tensor],
) -> RawPredictions:
    def joined(parts: Iterable[NDArray | Tensor], kind: type, width: int = 0) -> NDArray:
        shape = (0, width) if width else (0,)
        empty: NDArray = np.zeros(shape, kind)
        return np.concatenate([empty, *(np.asarray(part, kind) for part in parts)])

    return RawPredictions(
        image_ids=np.array(ids, np.str_),
        scale=joined(scales, np.float32, 4),
        limit=joined(limits, np.float32, 4),
        objects=np.array([len(one.labels) for one in objects], np.int32),
        candidates=np.array([len(one.scores) for one in found], np.int32),
        object_box=joined((one.boxes for one in objects), np.float64, 4),
        object_label=joined((one.labels for one in objects), np.int32),
        object_crowd=joined((one.crowd for one in objects), np.bool_),
        object_difficult=joined((one.difficult for one in objects), np.bool_),
        object_area=joined((one.areas for one in objects), np.float64),
        box=joined((one.boxes for one in found), np.float32, 4),
        score=joined((one.scores for one in found), np.float32),
        label=joined((one.labels for one in found), np.int32),
    )
