"""Remote shards, read through the node's cache and fetched before they are needed."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.manifest import Shard
from pipeline.errors import OutageError, UserError
from pipeline.storage.remote import Remote

THREADS_PER_PROCESS = 2  # the processes of a node share the work

log = logging.getLogger(__name__)


class CachedShards:
    """The shards of a remote set.

    Can be pickled and forked: threads start in the process that prefetches.
    """

    def __init__(self, remote: Remote, cache: ShardCache) -> None:
        self.remote, self.cache = remote, cache
        self._queue: queue.SimpleQueue[Shard] | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_queue": None, "_process": 0}

    def open(self, shard: Shard) -> tuple[int, np.ndarray]:
        """Return a descriptor of the shard and its index (samples, 4). Raises as `Remote.fetch`."""
        return self.cache.open(shard, partial(self._fetch, shard))

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Start to fetch these shards, in this order; return at once."""
        if self._queue is None or self._process != os.getpid():
            self._queue, self._process = queue.SimpleQueue(), os.getpid()
            for _ in range(THREADS_PER_PROCESS):
                threading.Thread(target=self._run, args=(self._queue,), daemon=True).start()
        for shard in shards:
            self._queue.put(shard)

    def _run(self, shards: queue.SimpleQueue[Shard]) -> None:
        while True:
            shard = shards.get()
            try:
                self.cache.fetch(shard, partial(self._fetch, shard), wait=False)
            except (UserError, OutageError, OSError) as error:
                # Reading the shard fails with the same error, and reports it.
                log.debug("not prefetched: %s", error)

    def _fetch(self, shard: Shard, to: Path) -> None:
        try:
            self.remote.fetch(shard.name, to, shard.bytes, shard.sha256)
        except FileNotFoundError:
            raise UserError(
                f"{self.remote.uri}/{shard.name}: missing, but the manifest lists it; copy it again"
            ) from None
