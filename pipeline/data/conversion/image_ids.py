"""The ids of the images of a source: which occurred before, with 9 to 12 bytes of memory per id."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b

import numpy as np

MAX_RECENT_IDS = 2048  # per group, in a set that takes 100 bytes per id


class ImageIds:
    """A set of ids that keeps 72 bits of a hash of each.

    Of a hundred million ids, two have the same hash with a probability of one in a million.
    """

    def __init__(self) -> None:
        # By the first byte of the hash: its other eight bytes, the recent ones and a sorted array.
        self._recent: list[set[int]] = [set() for _ in range(256)]
        self._sorted = [array("Q") for _ in range(256)]

    def add(self, image_id: str) -> bool:
        """Add an id; return whether it is new."""
        digest = blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=9).digest()
        group, key = digest[0], int.from_bytes(digest[1:], "little")
        recent, known = self._recent[group], self._sorted[group]
        if key in recent:
            return False
        at = bisect_left(known, key)
        if at < len(known) and known[at] == key:
            return False
        recent.add(key)
        if len(recent) >= MAX_RECENT_IDS:
            self._merge(group)
        return True

    def _merge(self, group: int) -> None:
        """Move the recent ids of a group to its array."""
        recent = np.fromiter(self._recent[group], np.uint64, len(self._recent[group]))
        known = np.frombuffer(self._sorted[group], np.uint64)
        merged = np.sort(np.concatenate([known, recent]), kind="stable")
        self._sorted[group] = array("Q", merged.tobytes())
        self._recent[group].clear()
