"""Random numbers that depend on a key and on nothing else.

Only the bit generator and SeedSequence are used for what must never change: NumPy promises their
streams across versions, and does not promise those of ``Generator``'s own methods.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

_PURPOSES = {
    "order": 1,
    "windows": 2,
    "augment": 3,
    "shapes": 4,
    "network": 5,
    "mix": 6,
    "scale": 7,
}
Purpose = Literal["order", "windows", "augment", "shapes", "network", "mix", "scale"]


def bits(purpose: Purpose, *key: int) -> np.random.PCG64:
    """A bit generator for one purpose and key of non-negative integers."""
    words: list[int] | np.ndarray = [_PURPOSES[purpose], len(key), *key]
    if max(words) < 2**32:  # the same entropy, taken up in half the time
        words = np.array(words, dtype=np.uint32)
    return np.random.PCG64(np.random.SeedSequence(words))


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """The same with NumPy's methods on top."""
    return np.random.Generator(bits(purpose, *key))


def permute(n: int, purpose: Purpose, *key: int) -> np.ndarray:
    """A permutation (n,) of range(n), int64: sorted by 64 random bits each."""
    return np.argsort(bits(purpose, *key).random_raw(n), kind="stable")
