"""Test the limit on unreadable samples."""

import pytest

from pipeline.data.loading.bad_samples import BadSamples
from pipeline.errors import UserError


def test_each_bad_sample_is_warned_about_once(caplog):
    bad = BadSamples(0.01)
    for _ in range(3):
        bad.count(8, ["a: broken"])
    assert caplog.text.count("a: broken") == 1 and bad.problems == {"a: broken": 3}


def test_ten_bad_samples_are_always_tolerated():
    bad = BadSamples(0.0)
    for _ in range(5):
        bad.count(10, [f"{i}: broken" for i in range(10)])


def test_more_bad_samples_are_tolerated_up_to_the_fraction():
    bad = BadSamples(0.01)
    bad.count(1100, [f"{i}: broken" for i in range(11)])
    with pytest.raises(UserError, match=r"12 of 1101 samples .*max_bad_fraction 0.01: 0: broken; "):
        bad.count(1, ["11: broken"])
