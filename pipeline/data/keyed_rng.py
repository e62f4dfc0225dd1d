"""Random numbers that depend on a key and on nothing else.

What must never change uses only NumPy's SeedSequence and PCG64: NumPy promises their streams across
versions, but not those of the methods of ``Generator``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["order", "windows", "augment", "shapes", "network", "mix", "scale", "repeat"]
# The numbers are part of every stream, so they must never change.
_PURPOSE_NUMBERS: dict[Purpose, int] = {
    "order": 1,
    "windows": 2,
    "augment": 3,
    "shapes": 4,
    "network": 5,
    "mix": 6,
    "scale": 7,
    "repeat": 8,
}


def bit_generator(purpose: Purpose, *key: int) -> np.random.PCG64:
    """Return the bit generator of one purpose and key; a key is non-negative integers."""
    entropy: list[int] | np.ndarray = [_PURPOSE_NUMBERS[purpose], len(key), *key]
    if max(entropy) < 2**32:  # the same seed, computed in half the time
        entropy = np.array(entropy, dtype=np.uint32)
    return np.random.PCG64(np.random.SeedSequence(entropy))


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """Return a NumPy generator on the bit generator of one purpose and key."""
    return np.random.Generator(bit_generator(purpose, *key))


def permute(n: int, purpose: Purpose, *key: int) -> np.ndarray:
    """Return a permutation (n,) of range(n), int64: sorted by 64 random bits each."""
    return np.argsort(bit_generator(purpose, *key).random_raw(n), kind="stable")
