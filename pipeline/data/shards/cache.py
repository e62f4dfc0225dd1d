"""Whole shards kept on a node's disk under a byte limit, shared by all of its processes.

A shard is named by its sha256, so two sets may share one and a changed set never meets its old
self. One process fetches a shard while the others wait for it (a lock that dies with its holder);
it appears under its name only when it is whole and checked. The least recently used go first.
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
from pipeline.data.shards.tar import TarError, sample_index
from pipeline.errors import UserError
from pipeline.storage.cache_dir import user_cache
from pipeline.storage.durable import sync_file
from pipeline.storage.lock import try_lock_file

DEFAULT_LIMIT = 32 * 2**30
POLL_SECONDS = 0.2
# Whatever else lies in the folder is somebody's and stays.
_OWN = re.compile(r"[0-9a-f]{64}\.(tar|index|(?P<size>\d+)\.partial)")

Fetch = Callable[[Path], None]


class ShardCache:
    """A folder of fetched shards, each with its index of byte offsets beside it."""

    def __init__(self, folder: str | Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        folder = os.path.expanduser(folder) if folder else user_cache("shards")
        self.folder, self.limit = Path(folder).absolute(), limit

    def open(self, shard: Shard, fetch: Fetch) -> tuple[int, np.ndarray]:
        """A descriptor of the shard and its index (samples, 4); fetched first where it is absent.

        Raises UserError if it cannot be fetched, is no sound tar, or has no room.
        """
        while not (opened := self._open(shard)):
            self.fetch(shard, fetch)
        return opened

    def fetch(self, shard: Shard, fetch: Fetch, *, wait: bool = True) -> bool:
        """Make sure that the shard is here. Without ``wait`` leave it if another process is at it.

        Returns whether it is here.
        """
        if self._is_here(shard):
            return True
        self._make_folder()
        with try_lock_file(self._path(shard, "lock"), None if wait else 0) as held:
            if not held:
                return False
            if not self._is_here(shard):
                # The name carries the size, so that others count the room it will take.
                size = shard.bytes + shard.samples * 32
                partial = self._path(shard, f"{size}.partial")
                partial.unlink(missing_ok=True)
                try:
                    if not self._reserve(partial, size, wait):
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
            # A tar is there only after its index is, and is deleted before it.
            index = np.fromfile(self._path(shard, "index"), dtype="<i8")
        except FileNotFoundError:
            index = np.empty(0, "<i8")
        if index.size == 4 * shard.samples and os.fstat(descriptor).st_size == shard.bytes:
            os.utime(descriptor)
            return descriptor, index.reshape(-1, 4)
        os.close(descriptor)
        tar.unlink(missing_ok=True)  # evicted just now, or spoilt by something: fetch it again
        return None

    def _publish(self, shard: Shard, partial: Path) -> None:
        """Index a checked shard and give it its name, durably and the tar last."""
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            rows = sample_index(descriptor)
            sync_file(descriptor)
        except TarError as error:
            raise UserError(f"{shard.name}: was written wrong: {error}; convert again") from None
        finally:
            os.close(descriptor)
        if len(rows) != shard.samples:
            raise UserError(
                f"{shard.name}: holds {len(rows)} samples, the manifest says {shard.samples}; "
                "convert again"
            )
        index = self._path(shard, "index")
        with index.open("wb") as file:
            file.write(rows.tobytes())
            sync_file(file)
        with self._room():  # or a count that is going on would find it under neither name
            partial.replace(self._path(shard, "tar"))

    def _reserve(self, partial: Path, size: int, wait: bool) -> bool:
        """Make room for ``size`` bytes and claim them by creating ``partial``."""
        if size > self.limit:
            raise UserError(
                f"data.cache_gib {self.limit / 2**30:g} cannot hold a shard of {size} bytes; "
                "raise it"
            )
        while True:
            with self._room():
                if self._evict(size):
                    partial.touch()
                    return True
            if not wait:
                return False
            time.sleep(POLL_SECONDS)  # others are fetching; what they bring can be evicted soon

    def _room(self) -> AbstractContextManager[bool]:
        """Nobody else claims room, or turns a claim into a shard."""
        return try_lock_file(self.folder / "room.lock")

    def _evict(self, size: int) -> bool:
        """Delete the least recently used shards until ``size`` more bytes fit."""
        used, shards = 0, []
        for path in self.folder.iterdir():
            own = _OWN.fullmatch(path.name)
            if own is None:
                continue
            with suppress(FileNotFoundError):  # one whose transfer has failed
                status = path.stat()
                if own["size"] is None:
                    used += status.st_size
                    shards.append((status.st_mtime_ns, path))
                elif not self._stale(path):
                    used += int(own["size"])
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

    def _stale(self, partial: Path) -> bool:
        """Remove what a process that died has left; whether it was that."""
        with try_lock_file(self.folder / f"{partial.name.split('.')[0]}.lock", 0) as held:
            if held:
                partial.unlink(missing_ok=True)
            return held

    def _path(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{shard.sha256}.{suffix}"

    def _is_here(self, shard: Shard) -> bool:
        return self._path(shard, "tar").exists() and self._path(shard, "index").exists()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"data.cache {self.folder}: {error.strerror}") from None
