"""Tar shards with an index of byte offsets beside each: written once, read by position.

A shard is a plain WebDataset tar. Its bytes depend on nothing but the samples: no times, no owners.
The index is little-endian int64 (samples, 4): offset and size of the image, then of the JSON.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import logging
import os
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.manifest import Manifest, Shard, load_manifest, local_folder
from pipeline.errors import UserError

BLOCK = 512
OPEN_SHARDS = 128
INDEX_TYPE = np.dtype("<i8")
INDEX_ROW = 4 * INDEX_TYPE.itemsize

log = logging.getLogger(__name__)


class ShardWriter:
    """Writes samples into ``shard-000000.tar``, ...; a new one when a limit would be passed.

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
            (*self._member(f"{key}.{extension}", image), *self._member(f"{key}.json", json))
        )
        self.samples += 1

    def close(self) -> list[Shard]:
        """Finish the last shard; all shards written."""
        if self._file:
            self._finish()
        return self.shards

    def _start(self) -> None:
        self._name = f"shard-{len(self.shards):06d}.tar"
        self._file = (self.folder / self._name).open("wb")
        self._hash, self._offset = hashlib.sha256(), 0
        self._rows: list[tuple[int, ...]] = []

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
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
        _close_durably(self._file)
        self._file = None
        with index_path(self.folder / self._name).open("wb") as file:
            file.write(np.array(self._rows, dtype=INDEX_TYPE).tobytes())
            _close_durably(file)
        self.shards.append(
            Shard(
                name=self._name,
                samples=len(self._rows),
                bytes=self._offset,
                sha256=self._hash.hexdigest(),
            )
        )


class Raw(NamedTuple):
    """One sample as stored; ``where`` names its place for messages."""

    image: bytes
    json: bytes
    where: str


class ShardSet:
    """Random access to the stored samples of a shard set in a folder.

    Every read is one positioned read; nothing is read at construction but the manifest and the
    sizes of the files. Safe to hand to forked or spawned loader processes.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.folder = local_folder(uri).absolute()
        self.manifest: Manifest = load_manifest(uri)
        if not self.manifest.samples:
            raise UserError(f"{uri}: the shard set has no samples; convert the data again")
        counts = (shard.samples for shard in self.manifest.shards)
        self._ends = list(itertools.accumulate(counts))
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._check_files()

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def read(self, index: int) -> Raw:
        """The bytes of sample ``index``: fewer where the shard is cut, none for a wrong index."""
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard] - self.manifest.shards[shard].samples)
        descriptor, offsets = self._shard(shard)
        entry = self.manifest.shards[shard]
        where = f"{entry.name} sample {row}"
        image_at, image_size, json_at, json_size = offsets[row].tolist()
        end = json_at + json_size
        if not 0 <= image_at <= image_at + image_size <= json_at <= end <= entry.bytes:
            return Raw(b"", b"", where)
        # Image and JSON are neighbours: one read brings both.
        block = os.pread(descriptor, end - image_at, image_at)
        return Raw(block[:image_size], block[json_at - image_at :], where)

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.folder / self.manifest.shards[shard].name
        offsets = np.fromfile(index_path(path), dtype=INDEX_TYPE).reshape(-1, 4)
        opened = os.open(path, os.O_RDONLY), offsets
        self._open[shard] = opened
        if len(self._open) > OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1][0])
        return opened

    def _check_files(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            index = index_path(path)
            for needed in (path, index):
                if not needed.is_file():
                    raise UserError(
                        f"{needed}: absent, though the manifest needs it; copy it again"
                    )
            if index.stat().st_size != shard.samples * INDEX_ROW:
                raise UserError(f"{index}: does not fit the manifest; copy or convert it again")
            if path.stat().st_size != shard.bytes:
                # What is still there can be learned from; what is not counts as unreadable.
                log.warning(
                    "%s has %d bytes, the manifest says %d", path, path.stat().st_size, shard.bytes
                )


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_suffix(".index")


def _close_durably(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
