"""Random numbers that depend on a key and on nothing else.

Only a hash and the bit generator are used for what must never change: NumPy promises the latter's
stream across versions, and does not promise those of ``Generator``'s own methods. The hash takes a
quarter of the time of NumPy's SeedSequence, which counts where every image has a key of its own.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
from numpy.random.bit_generator import ISeedSequence

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
    """A bit generator for one purpose and key of integers from 0 to 2**64 - 1."""
    seed: Any = _Seed((_PURPOSES[purpose], *key))  # NumPy's annotations know its own alone
    return np.random.PCG64(seed)


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """The same with NumPy's methods on top."""
    return np.random.Generator(bits(purpose, *key))


class _Seed(ISeedSequence):
    """The BLAKE2b hash of a key, as the state that a bit generator starts from."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self._key = b"".join([word.to_bytes(8, "little") for word in words])

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        kind = np.dtype(dtype).newbyteorder("<")
        digest = hashlib.blake2b(self._key, digest_size=n_words * kind.itemsize).digest()
        return np.frombuffer(digest, kind).astype(dtype, copy=False)


def permute(n: int, purpose: Purpose, *key: int) -> np.ndarray:
    """A permutation (n,) of range(n), int64: sorted by 64 random bits each."""
    return np.argsort(bits(purpose, *key).random_raw(n), kind="stable")
