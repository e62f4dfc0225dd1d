"""From a shard set to batches: what a rank trains on, and what it evaluates.

Loader processes read, decode and warp, and ship uint8; step k of training is computed from k
alone, so starting at step k costs no reading before it.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Config
from pipeline.data.augment import Plan, decode_size, decoded_scale, draw_plan, move_boxes, warp
from pipeline.data.bad import BadSamples
from pipeline.data.decode import ImageError, decode_image
from pipeline.data.order import Order, epoch_end, share, total_steps
from pipeline.data.randomness import generator
from pipeline.data.read_ahead import (
    Ahead,
    EvalAhead,
    TrainAhead,
    batches_of,
    check_cache,
    open_shards,
)
from pipeline.data.resize import to_input
from pipeline.data.sample import Sample
from pipeline.data.shards import Raw, ShardSet
from pipeline.errors import UserError

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A rank's share of a global batch; M and K are the most in any of its b images."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB
    boxes: torch.Tensor  # (b,M,4) float32 input pixels, padded with 0
    labels: torch.Tensor  # (b,M) int64, padded with -1
    ignore_boxes: torch.Tensor  # (b,K,4) float32 crowd regions, padded with 0
    valid: torch.Tensor  # (b,) bool; False: unreadable, a black image without objects
    image_ids: list[str]
    problems: list[str]  # one line per unreadable sample


class EvalBatch(NamedTuple):
    """Whole images, stretched to the input; unreadable ones are left out."""

    images: torch.Tensor  # (b,3,S,S) uint8 RGB
    image_ids: list[str]
    sizes: torch.Tensor  # (b,2) int64 width, height of the originals
    samples: list[Sample]
    problems: list[str]


class TrainLoader:
    """Iterates over this rank's share of global batches ``start_step``, ..., ``total_steps - 1``.

    Raises UserError when too many samples cannot be read; ``bad`` holds those met so far.
    """

    def __init__(
        self, shards: ShardSet, config: Config, rank: int, world_size: int, start_step: int = 0
    ) -> None:
        self.manifest = shards.manifest
        self.batch_size = config.train.batch_size
        self.total_steps = total_steps(config.train.epochs, len(shards), self.batch_size)
        self.start_step = start_step
        self.bad = BadSamples(config.data.max_bad_fraction)
        self._dataset = _TrainSteps(shards, config, rank, world_size)
        self._config = config

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.total_steps)
        ahead = TrainAhead(
            self._dataset.shards,
            self._dataset.order,
            self.batch_size,
            self._dataset.rank,
            self._dataset.world_size,
        )
        for batch in _in_order(Ahead(self._dataset, ahead), steps, self._config):
            self.bad.count(len(batch.image_ids), batch.problems)
            yield batch

    def steps_per_epoch_end(self, epoch: int) -> int:
        """Number of steps after which epoch ``epoch`` (from 0) is over."""
        return epoch_end(epoch, self.manifest.samples, self.batch_size)


class EvalLoader:
    """Iterates over samples ``rank, rank + world_size, ...``: each once over all ranks."""

    def __init__(self, shards: ShardSet, config: Config, rank: int, world_size: int) -> None:
        self.shards, self.manifest = shards, shards.manifest
        self.bad = BadSamples(config.data.max_bad_fraction)
        size = config.evaluate.batch_size
        mine = range(rank, len(shards), world_size)
        self._batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        self._dataset = _EvalSamples(shards, config.model.image_size)
        self._config = config

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        ahead = EvalAhead(self._dataset.shards)
        for batch in _in_order(Ahead(self._dataset, ahead), self._batches, self._config):
            self.bad.count(len(batch.image_ids) + len(batch.problems), batch.problems)
            if batch.image_ids:
                yield batch


def build_train_loader(
    uri: str, config: Config, rank: int, world_size: int, start_step: int = 0
) -> TrainLoader:
    """The training batches of one rank, from ``start_step`` on. Raises UserError."""
    shards, batch = open_shards(uri, config), config.train.batch_size
    if world_size > batch:
        raise UserError(
            f"train.batch_size {batch} is smaller than the {world_size} workers; "
            "raise it or use fewer workers"
        )
    if len(shards) < batch and rank == 0:
        log.warning("%s has %d samples, fewer than train.batch_size %d", uri, len(shards), batch)
    loader = TrainLoader(shards, config, rank, world_size, start_step)
    check_cache(shards, loader._dataset.order, world_size)
    return loader


def build_eval_loader(uri: str, config: Config, rank: int, world_size: int) -> EvalLoader:
    """The evaluation batches of one rank. Raises UserError."""
    return EvalLoader(open_shards(uri, config), config, rank, world_size)


class _TrainSteps(Dataset[Batch]):
    """Item k is the rank's share of global batch k."""

    def __init__(self, shards: ShardSet, config: Config, rank: int, world_size: int) -> None:
        data = config.data
        counts = [shard.samples for shard in shards.manifest.shards]
        self.order = Order(counts, config.train.seed, data.parts, data.window)
        self.shards, self.config = shards, config
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Batch:
        positions = share(step, self.config.train.batch_size, self.rank, self.world_size)
        return collate(
            [self._item(*self.order.sample(t)) for t in positions], self.config.model.image_size
        )

    def _item(self, index: int, epoch: int) -> TrainItem | Unreadable:
        raw = self.shards.read(index)
        try:
            sample = parse_sample(raw, len(self.shards.manifest.classes))
            rng = generator("augment", self.config.train.seed, epoch, index)
            return _augmented(raw, sample, rng, self.config)
        except ImageError as error:
            return Unreadable(raw.where, f"{raw.where}: {error}")


class _EvalSamples(Dataset[EvalBatch]):
    """Item ``range`` is the batch of those samples."""

    def __init__(self, shards: ShardSet, size: int) -> None:
        self.shards, self.size = shards, size

    def __getitem__(self, indices: Sequence[int]) -> EvalBatch:
        images, samples, problems = [], [], []
        for index in indices:
            raw = self.shards.read(index)
            try:
                sample = parse_sample(raw, len(self.shards.manifest.classes))
                images.append(to_input(_decode(raw, sample), self.size))
                samples.append(sample)
            except ImageError as error:
                problems.append(f"{raw.where}: {error}")
        pixels = np.stack(images) if images else np.empty((0, 3, self.size, self.size), np.uint8)
        return EvalBatch(
            torch.from_numpy(pixels),
            [sample.image_id for sample in samples],
            torch.tensor([(s.width, s.height) for s in samples], dtype=torch.int64).view(-1, 2),
            samples,
            problems,
        )


class TrainItem(NamedTuple):
    """One augmented image (S,S,3) with its objects and crowd regions in input pixels."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore_boxes: np.ndarray
    image_id: str


class Unreadable(NamedTuple):
    """Stands in a batch for a sample that could not be read."""

    image_id: str
    problem: str


def parse_sample(raw: Raw, classes: int) -> Sample:
    """The sample's JSON. Raises ImageError if it is damaged or does not fit the class list."""
    if raw.fault:
        raise ImageError(raw.fault)
    try:
        sample = Sample.model_validate_json(raw.json)
    except ValidationError as error:
        raise ImageError(f"damaged JSON: {error.errors()[0]['msg']}") from None
    wrong = [label for label in sample.labels if not 0 <= label < classes]
    if wrong:
        raise ImageError(
            f"image {sample.image_id!r}: label {wrong[0]} is not one of the {classes} classes"
        )
    return sample


def collate(items: Sequence[TrainItem | Unreadable], size: int) -> Batch:
    """Pad objects to the most in any image; unreadable images are black and not valid."""
    b = len(items)
    good = [(i, item) for i, item in enumerate(items) if isinstance(item, TrainItem)]
    most = max((len(item.boxes) for _, item in good), default=0)
    most_ignored = max((len(item.ignore_boxes) for _, item in good), default=0)
    images = np.zeros((b, 3, size, size), np.uint8)
    boxes, labels = np.zeros((b, most, 4), np.float32), np.full((b, most), -1, np.int64)
    ignored, valid = np.zeros((b, most_ignored, 4), np.float32), np.zeros(b, bool)
    for i, item in good:
        cv2.split(item.image, list(images[i]))
        boxes[i, : len(item.boxes)] = item.boxes
        labels[i, : len(item.labels)] = item.labels
        ignored[i, : len(item.ignore_boxes)] = item.ignore_boxes
        valid[i] = True
    return Batch(
        images=torch.from_numpy(images),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        ignore_boxes=torch.from_numpy(ignored),
        valid=torch.from_numpy(valid),
        image_ids=[item.image_id for item in items],
        problems=[item.problem for item in items if isinstance(item, Unreadable)],
    )


def _augmented(raw: Raw, sample: Sample, rng: np.random.Generator, config: Config) -> TrainItem:
    size = config.model.image_size
    boxes = np.array(sample.boxes, np.float64).reshape(-1, 4)
    labels, crowd = np.array(sample.labels, np.int64), np.array(sample.crowd, bool)
    plan = draw_plan(rng, config.data, sample.width, sample.height, boxes[~crowd])
    image = warp(_decode(raw, sample, plan, size), plan, sample.width, sample.height, size)
    objects, keep = move_boxes(boxes[~crowd], plan, size)
    ignored, _ = move_boxes(boxes[crowd], plan, size, centre_inside=False)
    return TrainItem(image, objects, labels[~crowd][keep], ignored, sample.image_id)


def _decode(raw: Raw, sample: Sample, plan: Plan | None = None, size: int = 0) -> np.ndarray:
    width, height = sample.width, sample.height
    least = decode_size(plan, width, height, size) if plan else None
    image = decode_image(raw.image, upright=False, min_size=least)
    if decoded_scale(image, width, height) < 1 and not plan:
        raise ImageError(f"the picture is smaller than the {width}x{height} that its JSON says")
    return image


def _in_order(dataset: Ahead, items: Sequence[Any], config: Config) -> Iterator[Any]:
    """Items of the dataset in the order given, made by loader processes."""
    workers = min(config.data.loader_workers, len(items))
    # Forked processes start at once; they touch neither CUDA nor the parent's threads.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    made = DataLoader(
        dataset,
        sampler=items,
        generator=torch.Generator(),  # or starting would move the global one
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=config.data.prefetch if workers else None,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="fork" if fork else None,
        pin_memory=torch.cuda.is_available(),
    )
    return batches_of(made)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
