"""From a shard set to batches: what a rank trains on, and what it evaluates.

Loader processes read, decode and warp, and send uint8. A training step is computed from its number
alone, so starting at step k reads nothing before it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from pipeline.config import Config
from pipeline.data.loading.bad_samples import BadSamples
from pipeline.data.loading.batch import Batch, BatchDataset, BatchT, EvalBatch, PackedBatch
from pipeline.data.loading.eval_dataset import EvalDataset
from pipeline.data.loading.prefetch_plan import (
    EvalPrefetcher,
    ItemT,
    PrefetchingDataset,
    TrainPrefetcher,
    check_cache_size,
    open_shards,
    raise_errors,
)
from pipeline.data.loading.sample_order import SampleOrder, epoch_end, total_steps
from pipeline.data.loading.shared_memory import SharedMemoryRing
from pipeline.data.loading.train_dataset import TrainDataset
from pipeline.data.shards.reader import ShardSet
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed, UserError
from pipeline.malloc import keep_freed_memory

log = logging.getLogger(__name__)


class TrainLoader:
    """Iterate over this rank's share of global batches ``start_step``, ..., ``total_steps - 1``.

    ``bad`` counts samples that cannot be read. A single rank raises UserError when there are too
    many; several ranks call ``bad.check``.
    """

    def __init__(
        self, shards: ShardSet, config: Config, rank: int, world_size: int, start_step: int = 0
    ) -> None:
        self.manifest = shards.manifest
        self.batch_size = config.train.batch_size
        epochs = config.train.epochs_of(len(shards))
        self.total_steps = total_steps(epochs, len(shards), self.batch_size)
        self.start_step = start_step
        self.bad = BadSamples(config.data.max_bad_fraction)
        self._dataset = TrainDataset(shards, config, rank, world_size, self.total_steps)
        side = max(config.data.sizes, default=config.model.image_size)
        self._slot_bytes = math.ceil(self.batch_size / world_size) * side * side * 3
        self._config = config

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.total_steps)
        dataset = self._dataset
        prefetcher = TrainPrefetcher(
            dataset.shards, self.order, self.batch_size, dataset.rank, dataset.world_size
        )
        for batch in _load(dataset, prefetcher, steps, self._config, self._slot_bytes):
            self.bad.count(batch.samples_read, batch.problems)
            if dataset.world_size == 1:
                self.bad.check(World())
            yield batch

    @property
    def order(self) -> SampleOrder:
        """Return the global order of the samples."""
        return self._dataset.order

    def steps_per_epoch_end(self, epoch: int) -> int:
        """Return the step at which epoch ``epoch`` (from 0) ends."""
        return epoch_end(epoch, self.manifest.samples, self.batch_size)


class EvalLoader:
    """Iterate over a rank's share of the batches that a single rank would have, one after another.

    So a rank reads few shards, and a detection, which may depend in its last bits on the images in
    its batch, does not depend on the number of ranks. ``part`` gives other samples, of which
    ``bad`` is then left to the caller to check; otherwise ``bad`` is as in `TrainLoader`.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: Config,
        rank: int,
        world_size: int,
        part: range | None = None,
    ) -> None:
        self.shards, self.manifest = shards, shards.manifest
        self.bad = BadSamples(config.data.max_bad_fraction)
        size = config.evaluate.batch_size
        own = part
        if own is None:
            batches = -(-len(shards) // size)
            first, last = (batches * r // world_size * size for r in (rank, rank + 1))
            own = range(first, min(last, len(shards)))
        self._batches = [own[i : i + size] for i in range(0, len(own), size)]
        self._dataset, self._checks = EvalDataset(shards, config), world_size == 1 and part is None
        self._slot_bytes = size * config.model.image_size**2 * 3
        self._config = config

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        prefetcher = EvalPrefetcher(self._dataset.shards)
        for batch in _load(
            self._dataset, prefetcher, self._batches, self._config, self._slot_bytes
        ):
            self.bad.count(len(batch.image_ids) + len(batch.problems), batch.problems)
            if self._checks:
                self.bad.check(World())
            if batch.image_ids:
                yield batch


def check_batches(config: Config, world_size: int) -> None:
    """Raise UserError if so many workers cannot train with the batch and image sizes."""
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
            "512 and 5 from there; keep all of them on one side of 512"
        )


def build_train_loader(
    uri: str | ShardSet, config: Config, rank: int, world_size: int, start_step: int = 0
) -> TrainLoader:
    """Return the loader of one rank's training batches from ``start_step`` on.

    Raises UserError.
    """
    shards = uri if isinstance(uri, ShardSet) else open_shards(uri, config)
    batch = config.train.batch_size
    check_batches(config, world_size)
    if len(shards) < batch and rank == 0:
        log.warning(
            "%s has %d samples, fewer than train.batch_size %d", shards.uri, len(shards), batch
        )
    loader = TrainLoader(shards, config, rank, world_size, start_step)
    check_cache_size(shards, loader.order, batch, world_size)
    return loader


def build_eval_loader(
    uri: str, config: Config, rank: int, world_size: int, part: range | None = None
) -> EvalLoader:
    """Return the loader of one rank's evaluation batches, or of a part. Raises UserError."""
    return EvalLoader(open_shards(uri, config), config, rank, world_size, part)


# A process that is forked from one with threads can hang before it runs any Python code. One that
# has not said so after this time is replaced.
START_SECONDS = 120.0
MAX_STARTS = 3


def _load(
    dataset: BatchDataset[BatchT],
    prefetcher: Callable[[ItemT], None],
    items: Sequence[ItemT],
    config: Config,
    slot_bytes: int,
) -> Iterator[BatchT]:
    """Yield the dataset's batches in the given order, made by loader processes."""
    workers = min(config.data.loader_workers, len(items))
    # Forked processes start at once; they use neither CUDA nor the parent's threads.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    # Slots for the queued batches, the one being written, and the trainer's current and last one.
    slots = config.data.prefetch + 3

    def start(sign_of_life: Callable[[], None] | None) -> Iterator[Any]:
        dataset.ring = SharedMemoryRing(workers, slots, slot_bytes) if fork else None
        loader = DataLoader(
            PrefetchingDataset(dataset.__getitem__, prefetcher),
            sampler=items,
            generator=torch.Generator(),  # otherwise starting would advance the global one
            batch_size=None,
            collate_fn=_identity,
            num_workers=workers,
            prefetch_factor=config.data.prefetch if workers else None,
            worker_init_fn=partial(_start_worker, sign_of_life) if workers else None,
            multiprocessing_context="fork" if fork else None,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)

    batches = start_processes(start, workers) if fork else start(None)
    for batch in raise_errors(batches):
        # torch has unpacked it already where it pins memory.
        yield batch.unpack() if isinstance(batch, PackedBatch) else batch


def start_processes(
    start: Callable[[Callable[[], None]], Iterator[Any]], count: int
) -> Iterator[Any]:
    """Return what ``start(sign_of_life)`` does, which forks ``count`` processes that call it.

    Where one of them hangs, all are killed and started again. Raises TrainingFailed after several
    times.
    """
    for _ in range(MAX_STARTS):
        others = set(multiprocessing.active_children())
        alive = multiprocessing.get_context("fork").Semaphore(0)
        batches = start(alive.release)
        deadline = time.monotonic() + START_SECONDS
        if all(alive.acquire(timeout=max(0.0, deadline - time.monotonic())) for _ in range(count)):
            return batches
        log.warning("a loader process hangs after its start; starting them again")
        del batches  # torch ends those that respond, and no longer raises an error if one is killed
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
            process.join()
    raise TrainingFailed(
        f"loader processes hung {MAX_STARTS} times at their start; repeat the command, or set "
        "data.loader_workers to 0"
    )


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(sign_of_life: Callable[[], None] | None, _: int) -> None:
    if sign_of_life is not None:
        sign_of_life()
    keep_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
