"""Random access to the samples of a shard set, by the byte offsets in each shard's index."""

from __future__ import annotations

import bisect
import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.manifest import Manifest, Shard, load_manifest, local_folder
from pipeline.data.shards.prefetcher import CachedShards
from pipeline.data.shards.tar import BLOCK, INDEX_TYPE, TarError, parse_header
from pipeline.data.shards.writer import index_path
from pipeline.errors import UserError
from pipeline.storage.remote import RETRIES, Remote, is_remote

# Room for the default 64 parts of 4 shards that one rank may read in turn; within the usual limit
# of 1,024 files for two sets in one process.
OPEN_SHARDS = min(512, os.sysconf("SC_OPEN_MAX") * 3 // 8)
TOUCH_SECONDS = 1.0
INDEX_ROW = 4 * INDEX_TYPE.itemsize

log = logging.getLogger(__name__)


class Raw(NamedTuple):
    """One sample as stored; ``where`` names its place for messages.

    ``fault`` says why it cannot be trusted, if so: a cut, a damaged header, a wrong index.
    """

    image: bytes | memoryview
    json: bytes
    where: str
    fault: str = ""


class ShardSet:
    """Random access to the stored samples of a shard set, in a folder or somewhere else.

    Every read is one positioned read. Nothing is read at construction but the manifest and, of a
    folder, the sizes of the files; remote shards are fetched whole into ``cache`` when they are
    first needed. A sample's headers are checked when it is first read from a folder; the cache has
    checked those of its shards. Safe to hand to forked or spawned loader processes.
    """

    def __init__(
        self, uri: str | Path, cache: ShardCache | None = None, retries: int = RETRIES
    ) -> None:
        self.uri = str(uri)
        self.manifest: Manifest = load_manifest(uri, retries)
        self.remote = is_remote(uri)
        self._files = (
            CachedShards(Remote(self.uri, retries), cache or ShardCache())
            if self.remote
            else _Folder(uri, self.manifest)
        )
        self._ends = list(itertools.accumulate(self.manifest.counts.tolist()))
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for opened in getattr(self, "_open", {}).values():
            os.close(opened.descriptor)

    def read(self, index: int) -> Raw:
        """The bytes of sample ``index``; with a ``fault`` where they cannot be trusted.

        Raises UserError if its shard cannot be had at all.
        """
        shard = self.shard_of(index)
        row = index - (self._ends[shard - 1] if shard else 0)
        opened = self._shard(shard)
        entry = opened.entry
        where = f"{entry.name} sample {row}"
        image_at, image_size, json_at, json_size = opened.offsets[row].tolist()
        begin, between, end = image_at - BLOCK, json_at - BLOCK, json_at + json_size
        if not (begin >= 0 <= image_size and image_at + image_size <= between) or not (
            between < json_at <= end <= entry.bytes
        ):
            return Raw(b"", b"", where, f"its index does not fit {entry.name}")
        # Image and JSON are neighbours: one read brings both, with their headers.
        block = memoryview(os.pread(opened.descriptor, end - begin, begin))
        image, json = block[BLOCK : BLOCK + image_size], bytes(block[json_at - begin :])
        if len(block) < end - begin:
            return Raw(image, json, where, f"{entry.name} is cut at byte {begin + len(block)}")
        if opened.checked[row]:
            return Raw(image, json, where)
        headers = bytes(block[:BLOCK]), bytes(block[between - begin : json_at - begin])
        return Raw(image, json, where, opened.check(row, *headers))

    def read_json(self, index: int) -> Raw:
        """The same with its JSON alone, for those who look at many samples and few pictures."""
        shard = self.shard_of(index)
        row = index - (self._ends[shard - 1] if shard else 0)
        opened = self._shard(shard)
        entry = opened.entry
        where = f"{entry.name} sample {row}"
        at, size = opened.offsets[row, 2:].tolist()
        if not 0 <= at <= at + size <= entry.bytes:
            return Raw(b"", b"", where, f"its index does not fit {entry.name}")
        return Raw(b"", os.pread(opened.descriptor, size, at), where)

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds sample ``index``."""
        return bisect.bisect_right(self._ends, index)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begin to fetch these shards, in this order, if they are elsewhere; returns at once."""
        self._files.prefetch([self.manifest.shards[shard] for shard in shards])

    @property
    def cache_limit(self) -> int | None:
        """Bytes that the cache may hold; None for a folder, which needs none."""
        return self._files.cache.limit if isinstance(self._files, CachedShards) else None

    def _shard(self, shard: int) -> _Open:
        if shard in self._open:
            opened = self._open[shard]
            self._open.move_to_end(shard)
            if self.remote:
                opened.touch()
            return opened
        if self.remote:
            self._close_evicted()
        entry = self.manifest.shards[shard]
        opened = _Open(entry, *self._files.open(entry), checked=self.remote)
        self._open[shard] = opened
        if len(self._open) > OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1].descriptor)
        return opened

    def _close_evicted(self) -> None:
        """Close files that the cache has deleted, or their space would not be free."""
        gone = [n for n, o in self._open.items() if not os.fstat(o.descriptor).st_nlink]
        for number in gone:
            os.close(self._open.pop(number).descriptor)


class _Open:
    """An open shard with its index (samples, 4), and whether each row is known to fit it."""

    def __init__(self, entry: Shard, descriptor: int, offsets: np.ndarray, checked: bool) -> None:
        self.entry, self.descriptor, self.offsets = entry, descriptor, offsets
        self.checked = bytearray([checked]) * len(offsets)
        self._in_place = _in_place(offsets, entry.bytes) if not checked else None
        self._touched = time.monotonic()

    def check(self, row: int, image_header: bytes, json_header: bytes) -> str:
        """What is wrong with a row whose headers these are; empty if nothing is."""
        image_at, image_size, json_at, json_size = self.offsets[row].tolist()
        try:
            image = parse_header(image_header, image_at - BLOCK)
            json = parse_header(json_header, json_at - BLOCK)
        except TarError as error:
            return f"{error}, or a wrong index"
        if (image.size, json.size) != (image_size, json_size):
            return f"its index does not fit {self.entry.name}"
        if json.name != f"{image.key}.json":
            return f"member {image.name!r} has {json.name!r} for its JSON"
        if self._in_place is not None and not self._in_place[row]:
            return f"its index, which leads to {image.key} again, does not fit {self.entry.name}"
        self.checked[row] = True
        return ""

    def touch(self) -> None:
        """Tell the cache, now and then, that this shard is in use."""
        if (now := time.monotonic()) > self._touched + TOUCH_SECONDS:
            os.utime(self.descriptor)
            self._touched = now


def _in_place(offsets: np.ndarray, size: int) -> np.ndarray:
    """Whether each row (samples,) of an index is the first to lead to its place.

    Rows that cannot be right by themselves say nothing about others.
    """
    image_at, image_size, json_at, json_size = offsets.T
    begins, ends = image_at - BLOCK, json_at + json_size
    likely = (begins >= 0) & (image_size >= 0) & (ends <= size)
    likely &= json_at == image_at + image_size + -image_size % BLOCK + BLOCK
    rows = np.flatnonzero(likely)
    first = np.zeros(len(offsets), dtype=bool)
    first[rows[np.unique(begins[rows], return_index=True)[1]]] = True
    return first | ~likely


class _Folder:
    """Shards that lie in a local folder, each with its index."""

    def __init__(self, uri: str | Path, manifest: Manifest) -> None:
        self.folder = local_folder(uri).absolute()
        self._check(manifest)

    def open(self, shard: Shard) -> tuple[int, np.ndarray]:
        """A descriptor of the shard and its index."""
        path = self.folder / shard.name
        offsets = np.fromfile(index_path(path), dtype=INDEX_TYPE).reshape(-1, 4)
        return os.open(path, os.O_RDONLY), offsets

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Nothing: they are here."""

    def _check(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
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
