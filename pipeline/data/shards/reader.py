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
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.shards.tar import BLOCK, INDEX_ROW_BYTES, INDEX_TYPE, TarError, parse_header
from pipeline.data.shards.writer import index_path
from pipeline.data.transforms.decode import ImageError
from pipeline.errors import UserError
from pipeline.storage.remote import RETRIES, Remote, is_remote

# Enough for the default 64 parts of 4 shards that one rank may read in turn, and within the usual
# limit of 1,024 files for two sets in one process.
MAX_OPEN_SHARDS = min(512, os.sysconf("SC_OPEN_MAX") * 3 // 8)
TOUCH_SECONDS = 1.0

log = logging.getLogger(__name__)


class RawSample(NamedTuple):
    """One sample as stored; ``location`` names its shard and row for messages.

    ``fault`` is empty, or says why the sample cannot be trusted: truncated, a damaged header, a
    wrong index.
    """

    image: bytes | memoryview
    json: bytes
    location: str
    fault: str = ""


def parse_sample(raw: RawSample, classes: int) -> Sample:
    """Return the sample in the JSON.

    Raises ImageError if it is damaged or has labels beyond the number of ``classes``.
    """
    if raw.fault:
        raise ImageError(raw.fault)
    try:
        sample = Sample.from_json(raw.json)
    except SampleError as error:
        raise ImageError(str(error)) from None
    if sample.labels and not 0 <= min(sample.labels) <= max(sample.labels) < classes:
        wrong = next(label for label in sample.labels if not 0 <= label < classes)
        raise ImageError(
            f"image {sample.image_id!r}: label {wrong} is not one of the {classes} classes"
        )
    return sample


class ShardSet:
    """Random access to the stored samples of a shard set, in a folder or at a URL.

    Each sample is one positioned read. Construction reads only the manifest and, in a folder, the
    sizes of the files; remote shards are fetched whole into ``cache`` when they are first needed.
    The headers of a sample are checked when it is first read from a folder; the cache has checked
    those of its shards. Can be passed to forked or spawned loader processes.
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
            else _LocalShards(uri, self.manifest)
        )
        self._ends = list(itertools.accumulate(self.manifest.counts.tolist()))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for opened in getattr(self, "_open", {}).values():
            os.close(opened.descriptor)

    def read(self, index: int) -> RawSample:
        """Return the bytes of sample ``index``, with a ``fault`` where they cannot be trusted.

        Raises UserError if its shard is not available, OutageError if its store does not respond.
        """
        shard = self.shard_of(index)
        row = index - (self._ends[shard - 1] if shard else 0)
        opened = self._shard(shard)
        entry = opened.entry
        location = f"{entry.name} sample {row}"
        image_at, image_size, json_at, json_size = opened.offsets[row].tolist()
        begin, between, end = image_at - BLOCK, json_at - BLOCK, json_at + json_size
        if not (begin >= 0 <= image_size and image_at + image_size <= between) or not (
            between < json_at <= end <= entry.bytes
        ):
            return RawSample(b"", b"", location, f"its index does not match {entry.name}")
        # Image and JSON are adjacent: one read returns both, with their headers.
        block = memoryview(os.pread(opened.descriptor, end - begin, begin))
        image, json = block[BLOCK : BLOCK + image_size], bytes(block[json_at - begin :])
        if len(block) < end - begin:
            fault = f"{entry.name} is truncated at byte {begin + len(block)}"
            return RawSample(image, json, location, fault)
        if opened.checked[row]:
            return RawSample(image, json, location)
        headers = bytes(block[:BLOCK]), bytes(block[between - begin : json_at - begin])
        return RawSample(image, json, location, opened.check(row, *headers))

    def read_json(self, index: int) -> RawSample:
        """Return sample ``index`` without its image, which callers that only count do not need."""
        shard = self.shard_of(index)
        row = index - (self._ends[shard - 1] if shard else 0)
        opened = self._shard(shard)
        entry = opened.entry
        location = f"{entry.name} sample {row}"
        at, size = opened.offsets[row, 2:].tolist()
        if not 0 <= at <= at + size <= entry.bytes:
            return RawSample(b"", b"", location, f"its index does not match {entry.name}")
        return RawSample(b"", os.pread(opened.descriptor, size, at), location)

    def shard_of(self, index: int) -> int:
        """Return the number of the shard that contains sample ``index``."""
        return bisect.bisect_right(self._ends, index)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Start to fetch remote shards, in this order; return at once."""
        self._files.prefetch([self.manifest.shards[shard] for shard in shards])

    @property
    def cache_limit(self) -> int | None:
        """Return the byte limit of the cache; None for a folder, which needs no cache."""
        return self._files.cache.limit if isinstance(self._files, CachedShards) else None

    def _shard(self, shard: int) -> _OpenShard:
        """Return an open shard; opened, and fetched, if needed."""
        if shard in self._open:
            opened = self._open[shard]
            self._open.move_to_end(shard)
            if self.remote:
                opened.touch()
            return opened
        if self.remote:
            self._close_evicted()
        entry = self.manifest.shards[shard]
        opened = _OpenShard(entry, *self._files.open(entry), checked=self.remote)
        self._open[shard] = opened
        if len(self._open) > MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1].descriptor)
        return opened

    def _close_evicted(self) -> None:
        """Close files that the cache has deleted, which would otherwise keep their disk space."""
        gone = [n for n, o in self._open.items() if not os.fstat(o.descriptor).st_nlink]
        for number in gone:
            os.close(self._open.pop(number).descriptor)


class _OpenShard:
    """An open shard with its index (samples, 4), and which rows are known to match it."""

    def __init__(self, entry: Shard, descriptor: int, offsets: np.ndarray, checked: bool) -> None:
        self.entry, self.descriptor, self.offsets = entry, descriptor, offsets
        self.checked = bytearray([checked]) * len(offsets)
        self._is_first = _first_rows(offsets, entry.bytes) if not checked else None
        self._touched = time.monotonic()

    def check(self, row: int, image_header: bytes, json_header: bytes) -> str:
        """Return the fault of a row with these headers; empty if it has none."""
        image_at, image_size, json_at, json_size = self.offsets[row].tolist()
        try:
            image = parse_header(image_header, image_at - BLOCK)
            json = parse_header(json_header, json_at - BLOCK)
        except TarError as error:
            return f"{error}, or a wrong index"
        if (image.size, json.size) != (image_size, json_size):
            return f"its index does not match {self.entry.name}"
        if json.name != f"{image.key}.json":
            return f"member {image.name!r} is paired with {json.name!r} instead of {image.key}.json"
        if self._is_first is not None and not self._is_first[row]:
            return f"its index points to {image.key} twice and does not match {self.entry.name}"
        self.checked[row] = True
        return ""

    def touch(self) -> None:
        """Mark the shard as recently used for the cache, once per `TOUCH_SECONDS`."""
        if (now := time.monotonic()) > self._touched + TOUCH_SECONDS:
            os.utime(self.descriptor)
            self._touched = now


def _first_rows(offsets: np.ndarray, size: int) -> np.ndarray:
    """Return whether each row (samples,) of an index is the first to point to its place.

    Rows that are impossible on their own do not count against others.
    """
    image_at, image_size, json_at, json_size = offsets.T
    begins, ends = image_at - BLOCK, json_at + json_size
    plausible = (begins >= 0) & (image_size >= 0) & (ends <= size)
    plausible &= json_at == image_at + image_size + -image_size % BLOCK + BLOCK
    rows = np.flatnonzero(plausible)
    first = np.zeros(len(offsets), dtype=bool)
    first[rows[np.unique(begins[rows], return_index=True)[1]]] = True
    return first | ~plausible


class _LocalShards:
    """The shards in a local folder, each with its index."""

    def __init__(self, uri: str | Path, manifest: Manifest) -> None:
        self.folder = local_folder(uri).absolute()
        self._check(manifest)

    def open(self, shard: Shard) -> tuple[int, np.ndarray]:
        """Return a descriptor of the shard and its index (samples, 4)."""
        path = self.folder / shard.name
        offsets = np.fromfile(index_path(path), dtype=INDEX_TYPE).reshape(-1, 4)
        return os.open(path, os.O_RDONLY), offsets

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Do nothing: the shards are local."""

    def _check(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
            path = self.folder / shard.name
            index = index_path(path)
            for needed in (path, index):
                if not needed.is_file():
                    raise UserError(f"{needed}: missing, but the manifest lists it; copy it again")
            if index.stat().st_size != shard.samples * INDEX_ROW_BYTES:
                raise UserError(
                    f"{index}: does not match the manifest; copy the shard set again, or convert "
                    "the data again"
                )
            if path.stat().st_size != shard.bytes:
                # Training uses the samples that are intact and counts the others as unreadable.
                log.warning(
                    "%s has %d bytes, the manifest says %d", path, path.stat().st_size, shard.bytes
                )
