"""From a shard set to batches: what a rank trains on, and what it evaluates.

Loader processes read, decode and warp, and ship uint8; step k of training is computed from k
alone, so starting at step k costs no reading before it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Config
from pipeline.data.loading.bad_samples import BadSamples
from pipeline.data.loading.batch import Batch, EvalBatch, Parcel
from pipeline.data.loading.prefetch_plan import (
    Ahead,
    EvalAhead,
    TrainAhead,
    batches_of,
    check_cache,
    open_shards,
)
from pipeline.data.loading.sample_order import Order, epoch_end, total_steps
from pipeline.data.loading.shared_memory import Ring
from pipeline.data.loading.train_dataset import TrainBatches, parse_sample, room
from pipeline.data.shards.reader import Raw, ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.data.transforms.resize import fill_input, seen_size
from pipeline.errors import UserError
from pipeline.malloc import keep_freed_memory

log = logging.getLogger(__name__)


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
        self._dataset = TrainBatches(shards, config, rank, world_size)
        side = max(config.data.sizes, default=config.model.image_size)
        self._slot_bytes = math.ceil(self.batch_size / world_size) * side * side * 3
        self._config = config

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.total_steps)
        dataset = self._dataset
        ahead = TrainAhead(
            dataset.shards, self.order, self.batch_size, dataset.rank, dataset.world_size
        )
        for batch in _batches(dataset, ahead, steps, self._config, self._slot_bytes):
            self.bad.count(batch.read, batch.problems)
            yield batch

    @property
    def order(self) -> Order:
        """The order of the samples."""
        return self._dataset.order

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
        self._dataset = _EvalBatches(shards, config)
        self._slot_bytes = size * config.model.image_size**2 * 3
        self._config = config

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        ahead = EvalAhead(self._dataset.shards)
        for batch in _batches(self._dataset, ahead, self._batches, self._config, self._slot_bytes):
            self.bad.count(len(batch.image_ids) + len(batch.problems), batch.problems)
            if batch.image_ids:
                yield batch


def build_train_loader(
    uri: str | ShardSet, config: Config, rank: int, world_size: int, start_step: int = 0
) -> TrainLoader:
    """The training batches of one rank, from ``start_step`` on. Raises UserError."""
    shards = uri if isinstance(uri, ShardSet) else open_shards(uri, config)
    batch = config.train.batch_size
    if world_size > batch:
        raise UserError(
            f"train.batch_size {batch} is smaller than the {world_size} workers; "
            "raise it or use fewer workers"
        )
    sizes, size = config.data.sizes, config.model.image_size
    if sizes and (max(sizes) < 512) != (size < 512):
        raise UserError(
            f"data.sizes {list(sizes)} and model.image_size {size}: detectors have 4 levels below "
            "512 and 5 from there; stay on one side"
        )
    if len(shards) < batch and rank == 0:
        log.warning(
            "%s has %d samples, fewer than train.batch_size %d", shards.uri, len(shards), batch
        )
    loader = TrainLoader(shards, config, rank, world_size, start_step)
    check_cache(shards, loader.order, world_size)
    return loader


def build_eval_loader(uri: str, config: Config, rank: int, world_size: int) -> EvalLoader:
    """The evaluation batches of one rank. Raises UserError."""
    return EvalLoader(open_shards(uri, config), config, rank, world_size)


class _EvalBatches(Dataset[Parcel]):
    """Item ``range`` is the batch of those samples."""

    def __init__(self, shards: ShardSet, config: Config) -> None:
        self.shards, self.size, self.fit = shards, config.model.image_size, config.data.fit
        self.ring: Ring | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "ring": None}

    def __getitem__(self, indices: Sequence[int]) -> Parcel:
        pixels, slot = room(self.ring, (len(indices), self.size, self.size, 3))
        samples: list[Sample] = []
        problems = []
        for index in indices:
            raw = self.shards.read(index)
            try:
                sample = parse_sample(raw, len(self.shards.manifest.classes))
                fill_input(_decode(raw, sample), pixels[len(samples)], self.fit)
                samples.append(sample)
            except ImageError as error:
                problems.append(f"{raw.where}: {error}")
        if slot:
            slot = slot._replace(shape=(len(samples), *slot.shape[1:]))
        ids = [sample.image_id for sample in samples]
        sizes = np.array([(s.width, s.height) for s in samples], np.int64).reshape(-1, 2)
        seen = [seen_size(s.width, s.height, self.fit) for s in samples]
        fields = (ids, sizes, np.array(seen, np.int64).reshape(-1, 2), samples, problems)
        return Parcel(EvalBatch, slot or pixels[: len(samples)], fields)


def _decode(raw: Raw, sample: Sample) -> np.ndarray:
    image = decode_image(raw.image, upright=False)
    if image.shape[:2] != (sample.height, sample.width):
        raise ImageError(
            f"the picture is not of the size {sample.width}x{sample.height} that its JSON says"
        )
    return image


def _batches(
    dataset: TrainBatches | _EvalBatches,
    ahead: Callable[[Any], None],
    items: Sequence[Any],
    config: Config,
    slot_bytes: int,
) -> Iterator[Any]:
    """Batches of the dataset in the order given, made by loader processes."""
    workers = min(config.data.loader_workers, len(items))
    # Forked processes start at once; they touch neither CUDA nor the parent's threads.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    # What is waiting, what is being written, and what the trainer has and has just had.
    dataset.ring = Ring(workers, config.data.prefetch + 3, slot_bytes) if fork else None
    parcels = DataLoader(
        Ahead(dataset, ahead),
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
    for parcel in batches_of(parcels):
        yield parcel.open() if isinstance(parcel, Parcel) else parcel  # else: pinned, and open


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    keep_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
