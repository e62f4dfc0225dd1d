"""Remote shards through the node's cache, fetched before they are needed.

While the windows of some parts are read, the next window of each is fetched.
"""

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
from pipeline.errors import UserError
from pipeline.storage.remote import Remote

THREADS = 2  # per process; the processes of a node share the work

log = logging.getLogger(__name__)


class CachedShards:
    """The shards of a remote set. May be pickled and forked; threads start where they are used."""

    def __init__(self, remote: Remote, cache: ShardCache) -> None:
        self.remote, self.cache = remote, cache
        self._wanted: queue.SimpleQueue[Shard] | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wanted": None, "_process": 0}

    def open(self, shard: Shard) -> tuple[int, np.ndarray]:
        """A descriptor of the shard and its index (samples, 4). Raises UserError."""
        return self.cache.open(shard, partial(self._fetch, shard))

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Begin to fetch these shards, in this order; returns at once."""
        if self._wanted is None or self._process != os.getpid():
            self._wanted, self._process = queue.SimpleQueue(), os.getpid()
            for _ in range(THREADS):
                threading.Thread(target=self._serve, args=(self._wanted,), daemon=True).start()
        for shard in shards:
            self._wanted.put(shard)

    def _serve(self, wanted: queue.SimpleQueue[Shard]) -> None:
        while True:
            shard = wanted.get()
            try:
                self.cache.fetch(shard, partial(self._fetch, shard), wait=False)
            except (UserError, OSError) as error:
                # Whoever needs the shard meets the error again, and stops.
                log.debug("not fetched ahead: %s", error)

    def _fetch(self, shard: Shard, to: Path) -> None:
        try:
            self.remote.fetch(shard.name, to, shard.bytes, shard.sha256)
        except FileNotFoundError:
            raise UserError(
                f"{self.remote.uri}/{shard.name}: absent, though the manifest needs it; "
                "copy it again"
            ) from None
