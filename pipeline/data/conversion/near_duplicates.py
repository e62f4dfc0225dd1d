"""Find near duplicates: images whose hashes of the coarse brightness pattern differ in a few bits.

The hash (dHash, in both directions) states for each cell of an 8x8 grid whether its right and its
lower neighbour are brighter. Copies that were scaled, recompressed or brightened differ in a few of
the 128 bits; different photographs in 30 and more.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from pipeline.data.shards.manifest import Problem
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.progress import Progress

GRID = 8
# One less than the bands of 16 bits: two near hashes have at least one band in common.
MAX_DIFFERENT_BITS = 7
CLEAR_STEP = 2.0  # grey levels between neighbouring cells
MIN_CLEAR_STEPS = 32  # with fewer, the pattern is mostly noise
# In a band, each hash is compared with at most so many that follow it, which keeps the time linear.
MAX_BAND_NEIGHBOURS = 1000


@dataclass
class ImageHashes:
    """The hashes of the images of a set, and the names to report them by."""

    set_name: str = ""
    file_names: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


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
    found = ImageHashes(f"{shards.manifest.name} {shards.manifest.split}")
    progress = Progress(f"hashing {uri}", len(shards))
    for index in range(len(shards)):
        raw = shards.read(index)
        try:
            name = Sample.from_json(raw.json).file_name
            hashed = image_hash(decode_image(raw.image))
        except (ImageError, SampleError):
            continue
        found.file_names.append(name)
        found.hashes.append(hashed)
        progress.advance()
    return found


def find_near_duplicates(own: ImageHashes, others: Sequence[ImageHashes]) -> list[Problem]:
    """Report near duplicates within a set, and leaks: near duplicates of images in other sets."""
    found = []
    for group in group_near_duplicates(own.hashes):
        first = own.file_names[group[0]]
        for index in group[1:]:
            reason = f"looks like {first}"
            found.append(Problem(file=own.file_names[index], kind="near duplicate", reason=reason))
    size = len(own.file_names)
    for other in others:
        for group in group_near_duplicates([*own.hashes, *other.hashes]):
            leaked = [index - size for index in group if index >= size]
            for index in group:
                if index < size and leaked:
                    reason = f"looks like {other.file_names[leaked[0]]} of {other.set_name}"
                    found.append(Problem(file=own.file_names[index], kind="leak", reason=reason))
    return found


def group_near_duplicates(hashes: Sequence[bytes]) -> list[list[int]]:
    """Return groups of two or more indices whose hashes are near, directly or through others.

    Groups and their indices are in ascending order.
    """
    if len(hashes) < 2:
        return []
    table = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    unique, which = np.unique(table, axis=0, return_inverse=True)
    parent = np.arange(len(unique))
    for a, b in _near_pairs(unique):
        roots = sorted((_root(parent, a), _root(parent, b)))
        parent[roots[1]] = roots[0]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(which.reshape(-1).tolist()):
        groups[_root(parent, number)].append(index)
    return sorted(group for group in groups.values() if len(group) > 1)


def _near_pairs(unique: np.ndarray) -> set[tuple[int, int]]:
    """Return pairs of rows of (U,2) uint64 that differ in at most MAX_DIFFERENT_BITS bits."""
    pairs: set[tuple[int, int]] = set()
    for band in np.ascontiguousarray(unique).view("<u2").T:
        order = np.argsort(band, kind="stable")
        value = band[order]
        at = np.arange(len(order))
        for apart in range(1, min(len(order), MAX_BAND_NEIGHBOURS)):
            at = at[at + apart < len(order)]
            at = at[value[at] == value[at + apart]]
            if not len(at):
                break
            a, b = order[at], order[at + apart]
            bits = np.bitwise_count(unique[a] ^ unique[b]).sum(1)
            near = bits <= MAX_DIFFERENT_BITS
            pairs.update(zip(a[near].tolist(), b[near].tolist(), strict=True))
    return pairs


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index
