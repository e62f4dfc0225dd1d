"""One pass over the annotations of a shard set, in memory that does not grow with the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.anchor_shapes import AnchorShapes
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.decode import ImageError
from pipeline.data.transforms.resize import visible_size
from pipeline.metrics.iou import pairwise_iou
from pipeline.progress import Progress
from pipeline.reports.doctor.anchor_fit import FIT_IOU, best_ious
from pipeline.reports.doctor.fingerprints import Fingerprints

Floats = NDArray[np.float64]

# Edges of groups of objects by side: the square root of the area, in pixels of the input.
SIDE_EDGES = (0, 8, 16, 32, 64, 128)
SIDE_NAMES = ("below 8", "8 to 16", "16 to 32", "32 to 64", "64 to 128", "from 128")
SMALL_SIDES = (4, 8)  # pixels of the input
LARGER_INPUTS = (1.5, 2, 3)  # times the input, for which small objects are counted too
NEAR_IOU = 0.9  # from which two boxes in an image are nearly equal
MAX_EXAMPLES = 3
MAX_KEPT_OBJECTS = 20_000
SHARDS_AHEAD = 4
_ROWS, _CHUNK_OBJECTS = 256, 4096


def sides(boxes: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the side (N,) of boxes (N,4) in pixels, and the group of sides (N,) of each."""
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return side, np.searchsorted(SIDE_EDGES, side, side="right") - 1


def to_input(sample: Sample, boxes: Floats, image_size: int, fit: str) -> Floats:
    """Return boxes (N,4) of a sample in pixels of the input, without augmentation."""
    visible = np.array(visible_size(sample.width, sample.height, fit) * 2)
    resized: Floats = boxes * image_size / visible
    return resized


@dataclass
class BoxPairs:
    """Pairs of boxes in one image that are equal or nearly equal, and images with examples."""

    pairs: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, pairs: int, sample: Sample) -> None:
        """Count the pairs of one sample."""
        self.pairs += pairs
        if pairs and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(sample.file_name)


class Statistics:
    """Counts over the samples of a set, as an input of ``image_size`` pixels shows them."""

    def __init__(self, manifest: Manifest, image_size: int, fit: str = "stretch") -> None:
        classes = len(manifest.classes)
        self.manifest, self.image_size, self.fit = manifest, image_size, fit
        # The input and larger ones, all divisible by 64.
        larger = [-(-int(image_size * factor) // 64) * 64 for factor in LARGER_INPUTS]
        self.inputs = (image_size, *larger)
        self.samples = self.empty = self.crowd = self.difficult = self.elongated = 0
        self.unreadable = 0
        self.unreadable_examples: list[str] = []
        self.objects_per_class = np.zeros(classes, np.int64)
        self.images_per_class = np.zeros(classes, np.int64)
        self.objects_per_side = np.zeros(len(SIDE_NAMES), np.int64)
        self.missed_per_class = np.zeros(classes, np.int64)
        self.missed_per_side = np.zeros(len(SIDE_NAMES), np.int64)
        self.small = Counter[tuple[int, int]]()  # by limit and input
        self.equal, self.near, self.two_classes = BoxPairs(), BoxPairs(), BoxPairs()
        self._draw = np.random.default_rng(0)
        self._kept = np.zeros((0, 6))  # random key, label, box
        self._waiting: list[Floats] = []  # label, box of objects that are not counted yet
        self._waiting_count = 0

    @property
    def objects(self) -> int:
        """Return the number of objects, without crowd regions."""
        return int(self.objects_per_class.sum())

    @property
    def missed(self) -> int:
        """Return the number of objects without an anchor that fits."""
        return int(self.missed_per_class.sum())

    @property
    def kept_boxes(self) -> Floats:
        """Return the boxes (N,4) of at most `MAX_KEPT_OBJECTS` objects, pixels of the input.

        They are all objects, or chosen at random, each with the same probability.
        """
        return self._kept[:, 2:]

    def add(self, sample: Sample, shapes: AnchorShapes) -> None:
        """Count one sample."""
        self.samples += 1
        boxes, crowd = np.array(sample.boxes, np.float64).reshape(-1, 4), np.array(sample.crowd)
        labels = np.array(sample.labels, np.int64)
        self.crowd += int(crowd.sum())
        self.difficult += sum(sample.difficult)
        self.elongated += not 0.5 <= sample.width / sample.height <= 2
        if len(boxes):
            boxes, labels = boxes[~crowd], labels[~crowd]
        self.empty += not len(boxes)
        if not len(boxes):
            return
        self.images_per_class[np.unique(labels)] += 1
        self._compare(sample, boxes, labels)
        resized = to_input(sample, boxes, self.image_size, self.fit)
        self._waiting.append(np.column_stack([labels, resized]))
        self._waiting_count += len(boxes)
        if self._waiting_count >= _CHUNK_OBJECTS:
            self.finish(shapes)

    def add_unreadable(self, reason: str) -> None:
        """Count a sample that cannot be read."""
        self.unreadable += 1
        if len(self.unreadable_examples) < MAX_EXAMPLES:
            self.unreadable_examples.append(reason)

    def finish(self, shapes: AnchorShapes) -> None:
        """Count the objects that were added last."""
        if not self._waiting:
            return
        objects = np.concatenate(self._waiting)
        self._waiting, self._waiting_count = [], 0
        labels, boxes = objects[:, 0].astype(np.int64), objects[:, 1:]
        side, group = sides(boxes)
        missed = best_ious(boxes, shapes, self.image_size) < FIT_IOU
        self.objects_per_class += np.bincount(labels, minlength=len(self.objects_per_class))
        self.missed_per_class += np.bincount(labels[missed], minlength=len(self.missed_per_class))
        self.objects_per_side += np.bincount(group, minlength=len(SIDE_NAMES))
        self.missed_per_side += np.bincount(group[missed], minlength=len(SIDE_NAMES))
        for limit in SMALL_SIDES:
            for size in self.inputs:
                self.small[limit, size] += int((side * size / self.image_size < limit).sum())
        # The smallest random keys are a uniform sample, whatever the number of objects.
        keys = self._draw.random(len(objects))
        self._kept = np.concatenate([self._kept, np.column_stack([keys, objects])])
        if len(self._kept) > MAX_KEPT_OBJECTS:
            order = np.argpartition(self._kept[:, 0], MAX_KEPT_OBJECTS)[:MAX_KEPT_OBJECTS]
            self._kept = self._kept[np.sort(order)]

    def _compare(self, sample: Sample, boxes: Floats, labels: NDArray[np.int64]) -> None:
        """Count the pairs of equal and nearly equal boxes (n,4) of a sample."""
        sized = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)  # x, y, w, h
        equal = near = two_classes = 0
        for start in range(0, len(boxes) - 1, _ROWS):
            rows = slice(start, start + _ROWS)
            later = np.arange(len(boxes)) > np.arange(start, len(boxes))[:_ROWS, None]  # (r,n)
            one, other = np.nonzero((pairwise_iou(sized[rows], sized) >= NEAR_IOU) & later)  # (p,)
            one += start
            one_class = labels[one] == labels[other]
            exact = one_class & (boxes[one] == boxes[other]).all(1)
            equal += int(exact.sum())
            near += int((one_class & ~exact).sum())
            two_classes += int((~one_class).sum())
        self.equal.add(equal, sample)
        self.near.add(near, sample)
        self.two_classes.add(two_classes, sample)


def collect(
    shards: ShardSet,
    shapes: AnchorShapes,
    image_size: int,
    fit: str,
    fingerprints: Fingerprints | None = None,
) -> Statistics:
    """Read the annotations of a set, and return their statistics.

    Also adds the samples to ``fingerprints``, if given. Raises as `read_samples`.
    """
    found = Statistics(shards.manifest, image_size, fit)
    for sample in read_samples(shards, found.add_unreadable):
        found.add(sample, shapes)
        if fingerprints is not None:
            fingerprints.add(sample)
    found.finish(shapes)
    return found


def read_samples(shards: ShardSet, report: Callable[[str], object]) -> Iterator[Sample]:
    """Yield the annotations of all images, and call ``report`` for those that cannot be read.

    Of a remote set, whole shards are read through the cache. Raises UserError or OutageError if one
    is not available.
    """
    progress = Progress("reading annotations", len(shards), "samples")
    current, total = -1, len(shards.manifest.shards)
    shards.prefetch(range(min(SHARDS_AHEAD, total)))
    for index in range(len(shards)):
        if (shard := shards.shard_of(index)) != current:
            current = shard
            shards.prefetch(range(shard + SHARDS_AHEAD, min(shard + SHARDS_AHEAD + 1, total)))
        raw = shards.read_json(index)
        try:
            yield parse_sample(raw, len(shards.manifest.classes))
        except ImageError as error:
            report(f"{raw.location}: {error}")
        progress.advance()
    progress.finish()
