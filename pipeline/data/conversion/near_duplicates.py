"""Pictures that look alike: a hash of the coarse brightness pattern, and those within a few bits.

The hash (dHash, in both directions) says for each cell of an 8x8 grid whether its right and its
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

from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample, SampleError
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.progress import Progress

GRID = 8
NEAR_BITS = 7  # one less than the bands of 16 bits, so that near hashes share one of them
TELLING = 32  # comparisons that must be clear for the pattern to say anything
CLEAR = 2.0  # grey levels
# Of so many that share a band each is compared with the next ones by hash: time stays linear.
CROWD = 1000


@dataclass
class Looks:
    """The hashes of the pictures of a set, and what to call the pictures."""

    title: str = ""
    names: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


def look(pixels: np.ndarray) -> bytes:
    """16 bytes that are alike for pictures (H,W,3) that look alike.

    For nearly plain pictures, which all look alike, they stand for the exact pixels.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (GRID + 1, GRID + 1), interpolation=cv2.INTER_AREA)
    right, down = np.diff(cells, axis=1)[:GRID], np.diff(cells, axis=0)[:, :GRID]
    steps = np.concatenate([right.ravel(), down.ravel()])
    if int((abs(steps) > CLEAR).sum()) < TELLING:
        return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()[:16]
    return np.packbits(steps > 0).tobytes()


def looks_of_set(uri: str) -> Looks:
    """Decode all pictures of a set; unreadable ones are left out. Raises UserError."""
    shards = ShardSet(uri)
    looks = Looks(f"{shards.manifest.name} {shards.manifest.split}")
    progress = Progress(f"looking at {uri}", len(shards))
    for index in range(len(shards)):
        raw = shards.read(index)
        try:
            name = Sample.from_json(raw.json).file_name
            hashed = look(decode_image(raw.image))
        except (ImageError, SampleError):
            continue
        looks.names.append(name)
        looks.hashes.append(hashed)
        progress.advance()
    return looks


def alike(hashes: Sequence[bytes]) -> list[list[int]]:
    """Groups of two and more indices whose hashes are near, also by way of others; in order."""
    if len(hashes) < 2:
        return []
    table = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    unique, which = np.unique(table, axis=0, return_inverse=True)
    parent = np.arange(len(unique))
    for a, b in _near(unique):
        roots = sorted((_root(parent, a), _root(parent, b)))
        parent[roots[1]] = roots[0]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(which.reshape(-1).tolist()):
        groups[_root(parent, number)].append(index)
    return sorted(group for group in groups.values() if len(group) > 1)


def _near(unique: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of rows of (U,2) uint64 that differ in at most NEAR_BITS bits."""
    pairs: set[tuple[int, int]] = set()
    for band in np.ascontiguousarray(unique).view("<u2").T:
        order = np.argsort(band, kind="stable")
        value = band[order]
        at = np.arange(len(order))
        for apart in range(1, min(len(order), CROWD)):
            at = at[at + apart < len(order)]
            at = at[value[at] == value[at + apart]]
            if not len(at):
                break
            a, b = order[at], order[at + apart]
            bits = np.bitwise_count(unique[a] ^ unique[b]).sum(1)
            near = bits <= NEAR_BITS
            pairs.update(zip(a[near].tolist(), b[near].tolist(), strict=True))
    return pairs


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index
