"""Find near duplicates: images whose hashes of the coarse brightness pattern differ in a few bits.

The hash (dHash, in both directions) states for each cell of an 8x8 grid whether its right and its
lower neighbour are brighter. Copies that were scaled, recompressed or brightened differ in a few of
the 128 bits; different photographs in 30 and more.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from pipeline.data.conversion.image_hashes import HashList, HashTable, ImageHashes
from pipeline.data.shards.problems import Problem
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.errors import UserError
from pipeline.progress import Progress

GRID = 8
# One less than the bands of 16 bits: two near hashes have at least one band in common.
MAX_DIFFERENT_BITS = 7
CLEAR_STEP = 2.0  # grey levels between neighbouring cells
MIN_CLEAR_STEPS = 32  # with fewer, the pattern is mostly noise
# In a band, each hash is compared with at most so many that follow it, which keeps the time linear.
MAX_BAND_NEIGHBOURS = 1000
BANDS = 8
MAX_ROWS = 2 * 2**20  # hashes in memory at a time


def image_hash(pixels: np.ndarray) -> bytes:
    """Return 16 bytes that are nearly the same for images (H,W,3) that look nearly the same.

    Almost uniform images, which all have the same pattern, are hashed by their exact pixels.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (GRID + 1, GRID + 1), interpolation=cv2.INTER_AREA)
    right, down = np.diff(cells, axis=1)[:GRID], np.diff(cells, axis=0)[:, :GRID]
    steps = np.concatenate([right.ravel(), down.ravel()])
    if int((abs(steps) > CLEAR_STEP).sum()) < MIN_CLEAR_STEPS:
        return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()[:16]
    return np.packbits(steps > 0).tobytes()


def hash_shard_set(uri: str) -> ImageHashes:
    """Decode and hash all images of a shard set, without unreadable ones. Raises UserError."""
    shards = ShardSet(uri)
    if shards.manifest.tiling:
        raise UserError(
            f"--compare-with {uri}: its samples are tiles; compare with a set of whole pictures"
        )
    found = ImageHashes(f"{shards.manifest.name} {shards.manifest.split}")
    progress = Progress(f"hashing {uri}", len(shards))
    for index in range(len(shards)):
        raw = shards.read(index)
        try:
            name = Sample.from_json(raw.json).file_name
            hashed = image_hash(decode_image(raw.image))
        except (ImageError, SampleError):
            continue
        found.extend([name], [hashed])
        progress.advance()
    return found


def find_near_duplicates(own: ImageHashes, others: Sequence[ImageHashes]) -> Iterator[Problem]:
    """Report near duplicates within a set, and leaks: near duplicates of images in other sets."""
    first = first_near_duplicates(own)
    for index in _by_group(first, first != np.arange(len(first), dtype=first.dtype)):
        reason = f"looks like {own.file_name(first[index])}"
        yield Problem(file=own.file_name(index), kind="near duplicate", reason=reason)
    size = len(own)
    for other in others:
        first = first_near_duplicates(own, other)
        leaked = size + np.flatnonzero(first[size:] < size)
        groups, at = np.unique(first[leaked], return_index=True)
        for index in _by_group(first, np.isin(first[:size], groups)):
            name = other.file_name(leaked[at[np.searchsorted(groups, first[index])]] - size)
            reason = f"looks like {name} of {other.set_name}"
            yield Problem(file=own.file_name(index), kind="leak", reason=reason)


def _by_group(first: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the indices of the ``chosen`` images (n,) bool in the order of their groups."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(first[indices], kind="stable")]


def group_near_duplicates(hashes: Sequence[bytes]) -> list[list[int]]:
    """Return groups of two or more indices whose hashes are near, directly or through others.

    Groups and their indices are in ascending order.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(first_near_duplicates(HashList(hashes)).tolist()):
        groups[first].append(index)
    return [group for group in groups.values() if len(group) > 1]


def first_near_duplicates(*tables: HashTable) -> np.ndarray:
    """Return for each image (N,) the index of the first one of its group.

    A group has the images whose hashes are near, directly or through others. Indices count through
    all ``tables``. Besides the result, the memory holds about MAX_ROWS hashes at a time, or those
    with one value of a band.
    """
    count = sum(len(table) for table in tables)
    first = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    for band in range(BANDS):
        for low, high in _ranges(tables, band):
            _join_near(first, *_rows_of(tables, band, low, high), band)
    for start in range(0, count, MAX_ROWS):
        rows = first[start : start + MAX_ROWS]
        while not np.array_equal(up := first[rows], rows):
            rows[:] = up
    return first


def _ranges(tables: Sequence[HashTable], band: int) -> Iterator[tuple[int, int]]:
    """Cut the values of a band into ranges [low, high) with up to MAX_ROWS hashes, if possible."""
    counts = np.zeros(2**16, np.int64)
    for table in tables:
        for rows in table.blocks():
            counts += np.bincount(_band(rows, band), minlength=2**16)
    low = held = 0
    for value, more in enumerate(counts.tolist()):
        if held and held + more > MAX_ROWS:
            yield low, value
            low, held = value, 0
        held += more
    if held:
        yield low, 2**16


def _rows_of(
    tables: Sequence[HashTable], band: int, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes (n,2) whose value of a band is in [low, high), and their indices (n,)."""
    hashes, indices, start = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)], 0
    for table in tables:
        for rows in table.blocks():
            values = _band(rows, band)
            chosen = np.flatnonzero((values >= low) & (values < high))
            hashes.append(rows[chosen])
            indices.append(chosen + start)
            start += len(rows)
    return np.concatenate(hashes), np.concatenate(indices)


def _band(rows: np.ndarray, band: int) -> np.ndarray:
    """Return 16 of the 128 bits of hashes (n,2), as (n,) uint16."""
    return np.ascontiguousarray(rows).view("<u2")[:, band]


def _join_near(first: np.ndarray, rows: np.ndarray, indices: np.ndarray, band: int) -> None:
    """Join the groups of near hashes (n,2) with indices (n,), in the forest ``first``."""
    # Sort by the value of the band, then by the hash: equal hashes become neighbours.
    order = np.lexsort((rows[:, 1], rows[:, 0], _band(rows, band)))
    rows, indices = rows[order], indices[order]
    new = np.r_[True, (rows[1:] != rows[:-1]).any(1)]
    if band == 0:  # no group of these images has been joined with another one yet
        first[indices] = indices[new][np.cumsum(new) - 1]
    rows, indices = rows[new], indices[new]
    value, at = _band(rows, band), np.arange(len(rows))
    for apart in range(1, min(len(rows), MAX_BAND_NEIGHBOURS)):
        at = at[at + apart < len(rows)]
        at = at[value[at] == value[at + apart]]
        if not len(at):
            break
        bits = np.bitwise_count(rows[at] ^ rows[at + apart]).sum(1)
        near = at[bits <= MAX_DIFFERENT_BITS]
        a, b = indices[near], indices[near + apart]
        apart_yet = first[a] != first[b]
        for pair in zip(a[apart_yet].tolist(), b[apart_yet].tolist(), strict=True):
            low, high = sorted(_root(first, index) for index in pair)
            first[high] = low


def _root(first: np.ndarray, index: int) -> int:
    while first[index] != index:
        first[index] = first[first[index]]
        index = int(first[index])
    return index
