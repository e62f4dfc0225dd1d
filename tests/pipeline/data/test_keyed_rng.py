"""Keyed random numbers: the same for ever, different for different keys and purposes."""

import numpy as np
import pytest

from pipeline.data.keyed_rng import bit_generator, generator, permute

# Recorded: another NumPy, machine or release must draw the same, or runs could not be resumed.
RECORDED = [
    ("order", (0, 0), [8271799387826207682, 7948369750201702571], 0.44841514333227195),
    ("windows", (3, 1, 2, 0), [13034816243445732124, 12717679904453068698], 0.7066188044546602),
    ("augment", (0, 0, 0), [16881039513145574425, 5923475255568592305], 0.9151229856983036),
    ("augment", (2147483647, 4, 65535), [15839526953464670613, 3273824898081373345], 0.85866247670),
    ("mix", (7, 2, 123456), [16124012012601587565, 17879523928241409430], 0.8740844426622505),
    ("mix", (2**32, 0, 5), [7630227454056864745, 4545943972312229564], 0.41363545911234956),
    ("augment", (2**40, 1, 3), [5745304567811574050, 11561780310100018079], 0.31145358470061),
    ("scale", (42, 9), [1827706744487416143, 5007553146925999851], 0.09908018115198325),
    ("network", (1, 0), [14676770080768580559, 10271941411323926615], 0.7956293003319773),
    ("shapes", (5, 6, 7), [12680186969331628657, 1975639668667882055], 0.6873943129835868),
]


@pytest.mark.parametrize(("purpose", "key", "raw", "first"), RECORDED)
def test_streams_never_change(purpose, key, raw, first):
    assert bit_generator(purpose, *key).random_raw(2).tolist() == raw
    assert generator(purpose, *key).random() == pytest.approx(first, abs=1e-11)


def test_permutations_are_permutations_and_keyed():
    a = permute(100, "order", 1, 2)
    assert sorted(a) == list(range(100))
    assert np.array_equal(a, permute(100, "order", 1, 2))
    for other in [("order", 1, 3), ("order", 1, 2, 0), ("windows", 1, 2), ("order", 2, 1)]:
        assert not np.array_equal(a, permute(100, *other))


def test_generators_are_keyed():
    assert generator("augment", 1, 2, 3).random() == generator("augment", 1, 2, 3).random()
    assert generator("augment", 1, 2, 3).random() != generator("augment", 1, 2, 4).random()
