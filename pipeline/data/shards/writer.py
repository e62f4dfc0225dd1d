"""Write tar shards, each with an index of byte offsets beside it.

A shard is a plain WebDataset tar. Its bytes depend only on the samples: it has no times and no
owners. The index is little-endian int64 (samples, 4): offset and size of the image, then of the
JSON.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.shards.manifest import Shard
from pipeline.data.shards.tar import BLOCK, INDEX_TYPE
from pipeline.storage.durable import sync_file


class ShardWriter:
    """Write samples to ``shard-000000.tar``, ...; start a new one before a limit is exceeded.

    The keys of samples count from ``first_key``.
    """

    def __init__(self, folder: Path, max_samples: int, max_bytes: int, first_key: int = 0) -> None:
        self.folder, self.max_samples, self.max_bytes = folder, max_samples, max_bytes
        self.first_key = first_key
        self.shards: list[Shard] = []
        self.samples = 0
        self._file: Any = None

    def add(self, extension: str, image: bytes, json: bytes) -> None:
        """Append one sample: the bytes of its image and of its JSON."""
        size = sum(BLOCK + len(data) + -len(data) % BLOCK for data in (image, json))
        if self._file and (
            len(self._rows) >= self.max_samples or self._offset + size > self.max_bytes
        ):
            self._finish()
        if not self._file:
            self._start()
        key = f"{self.first_key + self.samples:09d}"
        self._rows.append(
            (
                *self._write_member(f"{key}.{extension}", image),
                *self._write_member(f"{key}.json", json),
            )
        )
        self.samples += 1

    def close(self) -> list[Shard]:
        """Finish the last shard; return all shards."""
        if self._file:
            self._finish()
        return self.shards

    def _start(self) -> None:
        self._name = f"shard-{len(self.shards):06d}.tar"
        self._file = (self.folder / self._name).open("wb")
        self._hash, self._offset = hashlib.sha256(), 0
        self._rows: list[tuple[int, ...]] = []

    def _write_member(self, name: str, data: bytes) -> tuple[int, int]:
        """Write one file; return the offset and size of its data."""
        header = tarfile.TarInfo(name)  # defaults: mode 644, owner 0, time 0
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        start = self._offset
        self._write(data + bytes(-len(data) % BLOCK))
        return start, len(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)

    def _finish(self) -> None:
        self._write(bytes(2 * BLOCK))
        sync_file(self._file)
        self._file.close()
        self._file = None
        with index_path(self.folder / self._name).open("wb") as file:
            file.write(np.array(self._rows, dtype=INDEX_TYPE).tobytes())
            sync_file(file)
        self.shards.append(
            Shard(
                name=self._name,
                samples=len(self._rows),
                bytes=self._offset,
                sha256=self._hash.hexdigest(),
            )
        )


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index")
