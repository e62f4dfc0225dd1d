"""Which shards to fetch before they are needed, and whether a node's cache holds enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pipeline.config import Config
from pipeline.data.loading.sample_order import Order, Window, share
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import INDEX_ROW, ShardSet
from pipeline.errors import UserError

log = logging.getLogger(__name__)


def open_shards(uri: str, config: Config) -> ShardSet:
    """The shard set, with the configured cache if it is not in a folder. Raises UserError."""
    data = config.data
    return ShardSet(uri, ShardCache(data.cache, round(data.cache_gib * 2**30)), data.retries)


class TrainAhead:
    """Fetches the next window of every part while the present one is read."""

    def __init__(
        self, shards: ShardSet, order: Order, batch: int, rank: int, world_size: int
    ) -> None:
        self.shards, self.order, self.batch = shards, order, batch
        self.rank, self.world_size = rank, world_size
        self._present: dict[int, Window] = {}

    def __call__(self, step: int) -> None:
        """Call before a step's samples are read; returns at once."""
        if not self.shards.remote:
            return
        later: list[int] = []
        for position in share(step, self.batch, self.rank, self.world_size):
            window = self.order.window_at(position)
            known = self._present.get(window.part)
            if known is not None and window <= known:
                continue
            self._present[window.part] = window
            self.shards.prefetch(self.order.shards_of(window, position))
            following = self.order.next_window(window)
            if (following.part, following.number) != (window.part, window.number):
                later += self.order.shards_of(following)
        self.shards.prefetch(later)


class EvalAhead:
    """Fetches the next shard while one is read from its first to its last sample."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._last = -1

    def __call__(self, indices: Sequence[int]) -> None:
        """Call before a batch of samples is read; returns at once."""
        last = self.shards.shard_of(indices[-1])
        if self.shards.remote and last > self._last:
            shards = len(self.shards.manifest.shards)
            self.shards.prefetch(range(self.shards.shard_of(indices[0]), min(last + 2, shards)))
            self._last = last


class Ahead(Dataset[Any]):
    """A dataset of batches with something to be done before each of them.

    A UserError in a loader process would reach the trainer as a traceback of many lines, so it
    travels as a value; `batches_of` raises it.
    """

    def __init__(self, dataset: Dataset[Any], before: Callable[[Any], None]) -> None:
        self.dataset, self.before = dataset, before

    def __getitem__(self, item: Any) -> Any:
        try:
            self.before(item)
            return self.dataset[item]
        except UserError as error:
            return error


def batches_of(made: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader over `Ahead`; raises the UserError that one of them met."""
    for batch in made:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def check_cache(shards: ShardSet, order: Order, world_size: int) -> None:
    """Raise UserError if the cache holds less than what this node reads at a time."""
    if shards.cache_limit is None:
        return
    # Without word of the launcher all ranks may be here, which asks for the most.
    here = min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    count = order.working_set(world_size, here)
    sizes = np.sort(shards.manifest.sizes + INDEX_ROW * shards.manifest.counts)[::-1]
    needed, limit = int(sizes[:count].sum()), shards.cache_limit
    if limit < needed:
        raise UserError(
            f"data.cache_gib {limit / 2**30:.3g} is too small for {shards.uri}: a node reads "
            f"{count} of its {len(sizes)} shards at a time, {needed / 2**30:.3g} GiB; raise it"
            + ("" if count == len(sizes) else ", or lower data.window or data.parts")
        )
    if limit < sizes[: 2 * count].sum():
        log.warning(
            "data.cache_gib %.3g holds the %.3g GiB that are read at a time, but not twice that: "
            "shards fetched ahead may displace each other",
            limit / 2**30,
            needed / 2**30,
        )
