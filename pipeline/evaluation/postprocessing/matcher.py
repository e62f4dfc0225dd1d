"""Detections and matches of many settings of post-processing, over all images of a set at once.

The overlaps of candidates are computed once, and only pairs of one image that some setting may
suppress are kept. Then each setting is solved in a few rounds over these pairs: a candidate
survives once all better ones that it overlaps are suppressed, and is suppressed once one of them
survives. The result is that of `model.postprocess.nms`.

Shape letters: K candidates, P pairs of candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.boxes import box_iou
from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.evaluation.postprocessing.settings import Settings
from pipeline.metrics import MatchTable
from pipeline.metrics.matching import Overlaps

_PAIRS_PER_CHUNK = 4_000_000  # whose overlaps are in memory at the same time
Key = tuple[float, bool]
"""The IoU of NMS, and whether it is class-agnostic."""


class SettingsMatcher:
    """Gives the match tables of an evaluation with different settings of post-processing."""

    def __init__(self, raw: RawPredictions, settings: Iterable[Key]) -> None:
        """Prepare for the given settings of NMS."""
        self._masks = survivors(raw, settings)
        self._image = np.repeat(np.arange(len(raw.image_ids)), raw.candidates)  # (K,)
        # Candidates are sorted by logit, and sigmoids of these may differ in order in the last bit.
        self._order = np.lexsort((-raw.score, self._image))
        self._overlaps = Overlaps(raw.detections())

    def match(self, settings: Settings) -> MatchTable:
        """Return the match table of some settings, its images in the order of their ids."""
        kept = self._masks[settings.nms_iou, settings.class_agnostic].copy()
        before: NDArray[np.int64] = np.cumsum(kept) - kept  # (K,) survivors before each candidate
        first = np.searchsorted(self._image, self._image)
        kept &= before - before[first] < settings.max_detections
        return self._overlaps.match(kept[self._order]).sorted_by_image_id()


def survivors(raw: RawPredictions, settings: Iterable[Key]) -> dict[Key, NDArray[np.bool_]]:
    """Return, for each of some settings of NMS, the mask (K,) of candidates that survive."""
    wanted = list(dict.fromkeys(settings))
    masks = {key: np.ones(len(raw.score), np.bool_) for key in wanted}
    for rows in _chunks(raw.candidates):
        better, worse, iou = _pairs(raw, rows, min(threshold for threshold, _ in wanted))
        same_class = raw.label[better] == raw.label[worse]
        first, last = rows[0].start, rows[-1].stop
        for threshold, agnostic in wanted:
            chosen = iou > np.float32(threshold)
            if not agnostic:
                chosen &= same_class
            kept = _solve(better[chosen] - first, worse[chosen] - first, last - first)
            masks[threshold, agnostic][first:last] = kept
    return masks


def _chunks(counts: NDArray[np.int32]) -> Iterator[list[slice]]:
    """Yield the rows of the candidates of some images at a time."""
    chunk: list[slice] = []
    pairs = first = 0
    for count in counts.tolist():
        if chunk and pairs + count**2 > _PAIRS_PER_CHUNK:
            yield chunk
            chunk, pairs = [], 0
        chunk.append(slice(first, first + count))
        pairs += count**2
        first += count
    if chunk:
        yield chunk


def _pairs(
    raw: RawPredictions, rows: Sequence[slice], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the better and the worse candidate (P,) of pairs with an IoU above a threshold."""
    better, worse, ious = [], [], []
    for own in rows:
        boxes = torch.from_numpy(raw.box[own])
        iou = box_iou(boxes, boxes).triu(1)
        one, two = torch.nonzero(iou > threshold, as_tuple=True)
        ious.append(iou[one, two].numpy())
        better.append(one.numpy() + own.start)
        worse.append(two.numpy() + own.start)
    return np.concatenate(better), np.concatenate(worse), np.concatenate(ious)


def _solve(better: NDArray[np.int64], worse: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return which of ``count`` candidates survive, for pairs (P,) of which the better excludes."""
    undecided = np.zeros(count, np.bool_)
    undecided[worse] = True
    suppressed = np.zeros(count, np.bool_)
    while len(better):
        # Those that no undecided candidate excludes survive, and suppress what they overlap.
        suppressed[worse[~undecided[better]]] = True
        undecided &= ~suppressed
        open_pairs = undecided[better] & undecided[worse]
        better, worse = better[open_pairs], worse[open_pairs]
        undecided[:] = False
        undecided[worse] = True
    return ~suppressed
