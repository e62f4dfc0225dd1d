"""Images that two splits have in common, recognised by their annotations."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.sample import Sample

MIN_BOXES = 2  # a single box is equal by chance, for example one of a whole image
MAX_KEPT = 2**17  # about 20 MB
_LARGEST = 2**64 - 1


class Fingerprints:
    """Hashes of size and boxes of samples with at least `MIN_BOXES` boxes.

    Of more than `MAX_KEPT`, the smallest are kept: a share that is the same in every set.
    """

    def __init__(self) -> None:
        self._kept: dict[int, str] = {}  # hash: name of the file
        self._limit = _LARGEST  # all hashes up to it are kept

    def add(self, sample: Sample) -> None:
        """Add the fingerprint of a sample, if it has enough boxes."""
        if len(sample.boxes) < MIN_BOXES:
            return
        key = _hash(sample)
        if key <= self._limit:
            self._kept.setdefault(key, sample.file_name)
        if len(self._kept) > MAX_KEPT:
            # Half of them stay, so that this is rare.
            keys: NDArray[np.uint64] = np.fromiter(self._kept, np.uint64)
            self._limit = int(np.partition(keys, MAX_KEPT // 2)[MAX_KEPT // 2])
            self._kept = {k: name for k, name in self._kept.items() if k <= self._limit}

    def common(self, other: Fingerprints) -> tuple[int, list[tuple[str, str]]]:
        """Return how many of the samples are in both sets, and the files of a few, here and there.

        The number is an estimate if not all are kept.
        """
        limit = min(self._limit, other._limit)
        both = sorted(k for k in self._kept.keys() & other._kept.keys() if k <= limit)
        count = round(len(both) * (_LARGEST / limit)) if both else 0
        return count, [(self._kept[k], other._kept[k]) for k in both]


def _hash(sample: Sample) -> int:
    """Return 64 bits of size and boxes, whatever their order, classes and names."""
    boxes = sorted(tuple(map(float, box)) for box in sample.boxes)
    numbers = [sample.width, sample.height, *(value for box in boxes for value in box)]
    content = struct.pack(f"<{len(numbers)}d", *numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
