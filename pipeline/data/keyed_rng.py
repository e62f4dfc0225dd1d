"""Random numbers that depend on a key and on nothing else.

Only the bit generator and SeedSequence are used for what must never change: NumPy promises their
streams across versions, and does not promise those of ``Generator``'s own methods.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """A bit generator for one purpose and key of non-negative integers."""
    words: list[int] | np.ndarray = [_PURPOSES[purpose], len(key), *key]
    if max(words) < 2**32:  # the same entropy, taken up in half the time
        words = np.array(words, dtype=np.uint32)
    return np.random.PCG64(np.random.SeedSequence(words))


def generator(purpose: Purpose, *key: int) -> np.random.Generator:
    """The same with NumPy's methods on top."""
    return np.random.Generator(bits(purpose, *key))


def generators(purpose: Purpose, keys: Sequence[tuple[int, ...]]) -> list[np.random.Generator]:
    """The same for many keys of one length, at least two numbers each, in half the time."""
    if max(map(max, keys)) >= 2**32:
        return [generator(purpose, *key) for key in keys]
    words = np.array([(_PURPOSES[purpose], len(key), *key) for key in keys], dtype=np.uint32)
    seeds: list[Any] = [_Seed(seed) for seed in _seeds(words)]
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


def permute(n: int, purpose: Purpose, *key: int) -> np.ndarray:
    """A permutation (n,) of range(n), int64: sorted by 64 random bits each."""
    return np.argsort(bits(purpose, *key).random_raw(n), kind="stable")


class _Seed(ISeedSequence):
    """What a SeedSequence would have answered."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        assert (n_words, dtype) == (len(self.words), self.words.dtype)
        return self.words


def _powers(first: int, factor: int, count: int) -> np.ndarray:
    """``first`` times 1, ``factor``, its square, ... modulo 2^32, as a column."""
    powers = [first * pow(factor, k, 2**32) % 2**32 for k in range(count)]
    return np.array(powers, dtype=np.uint32)[:, None]


# The constants of NumPy's SeedSequence, which is O'Neill's seed_seq_fe128 and promised to stay.
_INTO, _OUT = _powers(0x43B0D7E5, 0x931E8875, 64), _powers(0x8B51F9DD, 0x58F38DED, 9)
_LEFT, _RIGHT, _HALF = np.uint32(0xCA01F9DD), np.uint32(0x4973F715), np.uint32(16)


def _seeds(entropy: np.ndarray) -> np.ndarray:
    """``SeedSequence(row).generate_state(4, uint64)`` of every row of (n, 4 to 12) uint32: (n,4).

    NumPy computes it one number after the other, with a Python object for each.
    """
    columns = entropy.T
    pool, at = _hashed(columns[:4], _INTO[:5]), 4
    for source in range(4):
        others = [row for row in range(4) if row != source]
        pool[others] = _mixed(pool[others], _hashed(pool[source], _INTO[at : at + 4]))
        at += 3
    for column in columns[4:]:
        pool = _mixed(pool, _hashed(column, _INTO[at : at + 5]))
        at += 4
    words = _hashed(np.concatenate([pool, pool]), _OUT)
    return np.ascontiguousarray(words.T, dtype="<u4").view("<u8")


def _hashed(values: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Values (n,) or (k,n) hashed by k constants, of which there is one more: (k,n)."""
    values = (values ^ constants[:-1]) * constants[1:]
    return values ^ values >> _HALF


def _mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = x * _LEFT - y * _RIGHT
    return mixed ^ mixed >> _HALF
