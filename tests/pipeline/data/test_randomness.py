"""Keyed random numbers: fixed, different for different keys and purposes."""

import numpy as np

from pipeline.data.randomness import generator, permute


def test_permutations_are_permutations_and_keyed():
    a = permute(100, "order", 1, 2)
    assert sorted(a) == list(range(100))
    assert np.array_equal(a, permute(100, "order", 1, 2))
    for other in [("order", 1, 3), ("order", 1, 2, 0), ("windows", 1, 2), ("order", 2, 1)]:
        assert not np.array_equal(a, permute(100, *other))


def test_generators_are_keyed():
    assert generator("augment", 1, 2, 3).random() == generator("augment", 1, 2, 3).random()
    assert generator("augment", 1, 2, 3).random() != generator("augment", 1, 2, 4).random()
