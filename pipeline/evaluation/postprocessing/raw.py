"""The predictions of a detector on a set before NMS, from which any detections can be made.

Shape letters: N images, M objects, K candidates, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import Detector
from model.postprocess import Candidates, candidates, suppress
from pipeline.config import EvaluateConfig
from pipeline.data import EvalBatch
from pipeline.distributed.precision import Precision, autocast
from pipeline.evaluation.evaluate import box_scale, match_in_parts, objects_of, to_images
from pipeline.evaluation.postprocessing.settings import Settings
from pipeline.metrics import ImageDetections, MatchTable, Objects

_IMAGES_PER_BATCH = 64


@dataclass(frozen=True)
class RawPredictions:
    """Columns of images (N,...), of their objects (M,...) and of their candidates (K,...).

    A candidate takes 24 bytes. Those of an image are sorted by falling score.
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

    def match(self, settings: Settings) -> MatchTable:
        """Return the match table of these settings, as an evaluation gives it, sorted by id."""
        return match_in_parts(self.detections(settings)).sorted_by_image_id()

    def detections(self, settings: Settings) -> Iterator[tuple[str, Objects, ImageDetections]]:
        """Yield each image's id and objects with the detections that `detect` gives."""
        object_ends = np.cumsum(self.objects)
        ends = np.cumsum(self.candidates)
        for first in range(0, len(self.image_ids), _IMAGES_PER_BATCH):
            images = range(first, min(first + _IMAGES_PER_BATCH, len(self.image_ids)))
            rows = slice(images.start, images.stop)
            found = self._padded([slice(ends[n] - self.candidates[n], ends[n]) for n in images])
            kept = suppress(
                found, settings.nms_iou, settings.max_detections, settings.class_agnostic
            )
            scale, limit = torch.from_numpy(self.scale[rows]), torch.from_numpy(self.limit[rows])
            boxes = torch.minimum(kept.boxes * scale[:, None], limit[:, None])  # (B,D,4)
            for n, detected in zip(images, to_images(boxes, kept), strict=True):
                own = slice(object_ends[n] - self.objects[n], object_ends[n])
                yield str(self.image_ids[n]), self._objects(own), detected

    def _padded(self, rows: list[slice]) -> Candidates:
        boxes, scores, labels = (
            pad_sequence([torch.from_numpy(column[own]) for own in rows], batch_first=True)
            for column in (self.box, self.score, self.label)
        )
        valid = pad_sequence(
            [torch.ones(own.stop - own.start, dtype=torch.bool) for own in rows], batch_first=True
        )
        return Candidates(boxes, scores, labels.long(), valid)

    def _objects(self, rows: slice) -> Objects:
        return Objects(
            self.object_box[rows],
            self.object_label[rows].astype(np.int64),
            self.object_crowd[rows],
            self.object_difficult[rows],
            self.object_area[rows],
        )


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
