"""Keyed random numbers: fixed, different for different keys and purposes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.keyed_rng import generator, generators, permute


def test_permutations_are_permutations_and_keyed():
    a = permute(100, "order", 1, 2)
    assert sorted(a) == list(range(100))
    assert np.array_equal(a, permute(100, "order", 1, 2))
    for other in [("order", 1, 3), ("order", 1, 2, 0), ("windows", 1, 2), ("order", 2, 1)]:
        assert not np.array_equal(a, permute(100, *other))


def test_generators_are_keyed():
    assert generator("augment", 1, 2, 3).random() == generator("augment", 1, 2, 3).random()
    assert generator("augment", 1, 2, 3).random() != generator("augment", 1, 2, 4).random()


@given(st.integers(2, 8), st.integers(1, 40), st.randoms(use_true_random=False))
def test_many_generators_are_those_of_single_keys(length, count, random):
    keys = [tuple(random.choice([0, 1, random.randrange(2**32)]) for _ in range(length))]
    keys += [tuple(random.randrange(2**32) for _ in range(length)) for _ in range(count)]
    for key, many in zip(keys, generators("augment", keys), strict=True):
        one = generator("augment", *key)
        assert one.bit_generator.state == many.bit_generator.state
        assert one.random() == many.random()


@pytest.mark.parametrize("large", [2**32, 2**40])
def test_keys_beyond_32_bits_have_their_generators_too(large):
    keys = [(1, 2, 3), (large, 0, 5)]
    for key, many in zip(keys, generators("mix", keys), strict=True):
        assert generator("mix", *key).random() == many.random()
