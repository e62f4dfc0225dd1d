"""A cache of whole shards on a node's disk, under a byte limit, shared by all its processes.

A shard is stored under its sha256: two sets may share one, and a changed set never gets a shard of
its former content. One process fetches a shard while others wait for its lock, which the kernel
releases if the process ends. The shard gets its final name only when it is complete and checked.
The least recently used shards are evicted first.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from pipeline.data.shards.manifest import Shard
from pipeline.data.shards.tar import INDEX_ROW_BYTES, INDEX_TYPE, TarError, sample_index
from pipeline.errors import UserError
from pipeline.storage.cache_dir import user_cache
from pipeline.storage.durable import sync_file
from pipeline.storage.lock import try_lock_file

DEFAULT_LIMIT_BYTES = 32 * 2**30
POLL_SECONDS = 0.2
# Other files in the folder are not the cache's: they stay, and do not count.
_CACHE_FILE = re.compile(r"[0-9a-f]{64}\.(tar|index|(?P<size>\d+)\.partial)")
# Earlier versions may use the same folder at the same time, so the name stays.
_SPACE_LOCK = "room.lock"

Fetch = Callable[[Path], None]


class ShardCache:
    """A folder of fetched shards, each with its index of byte offsets beside it.

    ``limit`` is in bytes.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        folder = os.path.expanduser(folder) if folder else user_cache("shards")
        self.folder, self.limit = Path(folder).absolute(), limit

    def open(self, shard: Shard, fetch: Fetch) -> tuple[int, np.ndarray]:
        """Return a descriptor of the shard and its index (samples, 4); fetch it if needed.

        Raises UserError if it is not a valid tar or exceeds the limit, and what ``fetch`` raises.
        """
        while not (opened := self._open(shard)):
            self.fetch(shard, fetch)
        return opened

    def fetch(self, shard: Shard, fetch: Fetch, *, wait: bool = True) -> bool:
        """Ensure that the shard is in the cache; return whether it is.

        Without ``wait`` it is left to another process that fetches it, or for later if there is no
        space for it now.
        """
        if self._contains(shard):
            return True
        self._make_folder()
        with try_lock_file(self._path(shard, "lock"), None if wait else 0) as held:
            if not held:
                return False
            if not self._contains(shard):
                # The name has the size: other processes then count the space that it will need.
                size = shard.bytes + shard.samples * INDEX_ROW_BYTES
                partial = self._path(shard, f"{size}.partial")
                partial.unlink(missing_ok=True)
                try:
                    if not self._reserve_space(partial, size, wait):
                        return False
                    fetch(partial)
                    self._publish(shard, partial)
                except OSError as error:
                    raise UserError(f"cache {self.folder}: {error.strerror or error}") from None
                finally:
                    partial.unlink(missing_ok=True)
        return True

    def _open(self, shard: Shard) -> tuple[int, np.ndarray] | None:
        tar = self._path(shard, "tar")
        try:
            descriptor = os.open(tar, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            # The index exists as long as the tar: it is written before and deleted after it.
            index = np.fromfile(self._path(shard, "index"), dtype=INDEX_TYPE)
        except FileNotFoundError:
            index = np.empty(0, INDEX_TYPE)
        if index.size == 4 * shard.samples and os.fstat(descriptor).st_size == shard.bytes:
            os.utime(descriptor)
            return descriptor, index.reshape(-1, 4)
        os.close(descriptor)
        tar.unlink(missing_ok=True)  # just evicted, or damaged from outside: fetch it again
        return None

    def _publish(self, shard: Shard, partial: Path) -> None:
        """Index a fetched shard and give it its final name, durably and the tar last."""
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            rows = sample_index(descriptor)
            sync_file(descriptor)
        except TarError as error:
            raise UserError(
                f"{shard.name}: not a valid shard: {error}; convert the data again"
            ) from None
        finally:
            os.close(descriptor)
        if len(rows) != shard.samples:
            raise UserError(
                f"{shard.name}: has {len(rows)} samples, the manifest says {shard.samples}; "
                "convert the data again"
            )
        index = self._path(shard, "index")
        with index.open("wb") as file:
            file.write(rows.tobytes())
            sync_file(file)
        with self._space_lock():  # a concurrent count would find it under neither of its names
            partial.replace(self._path(shard, "tar"))

    def _reserve_space(self, partial: Path, size: int, wait: bool) -> bool:
        """Reserve ``size`` bytes by creating ``partial``; evict shards if needed.

        Returns whether the bytes fit.
        """
        if size > self.limit:
            raise UserError(
                f"data.cache_gib {self.limit / 2**30:g} cannot hold a shard of {size} bytes; "
                "raise it"
            )
        while True:
            with self._space_lock():
                if self._evict(size):
                    partial.touch()
                    return True
            if not wait:
                return False
            time.sleep(POLL_SECONDS)  # other fetches hold the space; their shards can be evicted

    def _space_lock(self) -> AbstractContextManager[bool]:
        """Return the lock under which space is reserved and a reservation becomes a shard."""
        return try_lock_file(self.folder / _SPACE_LOCK)

    def _evict(self, size: int) -> bool:
        """Delete the least recently used shards until ``size`` more bytes fit.

        Returns whether they fit.
        """
        used, shards = 0, []
        for path in self.folder.iterdir():
            match = _CACHE_FILE.fullmatch(path.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # its transfer has just failed
                status = path.stat()
                if match["size"] is None:
                    used += status.st_size
                    shards.append((status.st_mtime_ns, path))
                elif not self._remove_stale(path):
                    used += int(match["size"])
        tars = sorted(entry for entry in shards if entry[1].suffix == ".tar")
        if used + size <= self.limit:
            return True
        for _, tar in tars:
            with suppress(FileNotFoundError):
                used -= tar.stat().st_size
                tar.unlink()
                used -= tar.with_suffix(".index").stat().st_size
                tar.with_suffix(".index").unlink()
            if used + size <= self.limit:
                return True
        return False

    def _remove_stale(self, partial: Path) -> bool:
        """Remove the partial file of a process that has died; return whether it was one."""
        with try_lock_file(self.folder / f"{partial.name.split('.')[0]}.lock", 0) as held:
            if held:
                partial.unlink(missing_ok=True)
            return held

    def _path(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{shard.sha256}.{suffix}"

    def _contains(self, shard: Shard) -> bool:
        return self._path(shard, "tar").exists() and self._path(shard, "index").exists()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"data.cache {self.folder}: {error.strerror}") from None
