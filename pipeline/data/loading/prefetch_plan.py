"""Which shards to fetch before they are needed, and whether a node's cache is large enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from pipeline.config import Config
from pipeline.data.loading.rank_share import rank_positions, working_set
from pipeline.data.loading.sample_order import SampleOrder, Window
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.tar import INDEX_ROW_BYTES
from pipeline.errors import OutageError, UserError
from pipeline.storage.folder import NETWORK_ERRORS
from pipeline.storage.redact import error_line

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")

log = logging.getLogger(__name__)


def open_shards(uri: str, config: Config) -> ShardSet:
    """Open a shard set, with the configured cache if it is remote.

    Raises UserError, OutageError.
    """
    data = config.data
    return ShardSet(uri, ShardCache(data.cache, round(data.cache_gib * 2**30)), data.retries)


class TrainPrefetcher:
    """Fetch the next window of every part while the current one is read."""

    def __init__(
        self, shards: ShardSet, order: SampleOrder, batch: int, rank: int, world_size: int
    ) -> None:
        self.shards, self.order, self.batch = shards, order, batch
        self.rank, self.world_size = rank, world_size
        self._current: dict[int, Window] = {}  # by part

    def __call__(self, step: int) -> None:
        """Start the fetches for a step; call it before the step's samples are read."""
        if not self.shards.remote:
            return
        later: list[int] = []
        own = rank_positions(self.order, step, self.batch, self.rank, self.world_size)
        for position in own:
            window = self.order.window_at(position)
            known = self._current.get(window.part)
            if known is not None and window <= known:
                continue
            self._current[window.part] = window
            self.shards.prefetch(self.order.shards_of(window, position))
            following = self.order.next_window(window)
            if (following.part, following.number) != (window.part, window.number):
                later += self.order.shards_of(following)
        self.shards.prefetch(later)


class EvalPrefetcher:
    """Fetch the next shard while one is read from its first to its last sample."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._last = -1

    def __call__(self, indices: Sequence[int]) -> None:
        """Start the fetches for a batch; call it before the samples are read."""
        last = self.shards.shard_of(indices[-1])
        if self.shards.remote and last > self._last:
            shards = len(self.shards.manifest.shards)
            self.shards.prefetch(range(self.shards.shard_of(indices[0]), min(last + 2, shards)))
            self._last = last


class PrefetchingDataset(Dataset[ValueT | UserError | OutageError], Generic[ItemT, ValueT]):
    """A dataset that starts the fetches for an item before it makes the item.

    A UserError or OutageError raised in a loader process would reach the trainer as a traceback of
    many lines, so it is returned as a value; `raise_errors` raises it.
    """

    def __init__(
        self, make: Callable[[ItemT], ValueT], start_fetches: Callable[[ItemT], None]
    ) -> None:
        self.make, self.start_fetches = make, start_fetches

    def __getitem__(self, item: ItemT) -> ValueT | UserError | OutageError:
        try:
            self.start_fetches(item)
            return self.make(item)
        except (UserError, OutageError) as error:
            return error
        except OSError as error:
            if error.errno not in NETWORK_ERRORS:
                raise
            return OutageError(f"a shard cannot be read: {error_line(error)}")


def raise_errors(values: Iterable[ValueT | UserError | OutageError]) -> Iterator[ValueT]:
    """Yield the values of a `PrefetchingDataset`; raise the error that one of them is."""
    for value in values:
        if isinstance(value, UserError | OutageError):
            raise value
        yield value


def check_cache_size(shards: ShardSet, order: SampleOrder, batch: int, world_size: int) -> None:
    """Warn if the cache is smaller than the shards that a node reads and fetches ahead.

    Raises UserError if it cannot hold the largest shard: then no number of workers could train.
    """
    if shards.cache_limit is None:
        return
    # If the launcher does not say, assume the largest case: all ranks on this node.
    local_ranks = min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    count = working_set(order, batch, world_size, local_ranks)
    sizes = np.sort(shards.manifest.sizes + INDEX_ROW_BYTES * shards.manifest.counts)[::-1]
    needed, limit = int(sizes[:count].sum()), shards.cache_limit
    cache = f"data.cache_gib {limit / 2**30:.3g}"
    if limit < sizes[0]:
        raise UserError(
            f"{cache} cannot hold the largest shard of {shards.uri}, {sizes[0]} bytes; raise it"
        )
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return  # one line per node
    if limit < needed:
        log.warning(
            "%s is too small for %s: a node reads %d of its %d shards at a time, %.3g GiB, and "
            "will fetch them again and again; raise it",
            *(cache, shards.uri, count, len(sizes), needed / 2**30),
        )
    elif limit < sizes[: 2 * count].sum():
        log.warning(
            "%s holds the %.3g GiB that are read at a time, but not twice that: shards fetched "
            "ahead may evict each other",
            *(cache, needed / 2**30),
        )
