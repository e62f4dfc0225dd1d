"""Ids, flags and numbers as tools write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources.values import read_flag, read_id, read_number


@given(st.integers(-(2**53), 2**53))
def test_integer_as_number_text_and_float_is_one_id(number):
    assert read_id(number) == read_id(str(number)) == read_id(float(number)) == str(number)


@pytest.mark.parametrize("text", ["01", "a.jpg", "1.0", " 1", "-", "null", "True", "é"])
def test_other_text_is_an_id_as_it_stands(text):
    assert read_id(text) == text


@pytest.mark.parametrize(
    "value", [None, True, False, "", "  ", 1.5, math.nan, math.inf, [], {}, [1]]
)
def test_other_values_are_not_ids(value):
    assert read_id(value) is None


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *((v, True) for v in (1, 1.0, True, "1", "1.0", " TRUE", "true", "yes", "Y")),
        *((v, False) for v in (0, 0.0, -0.0, False, "0", "0.0", "False\n", "no", "N")),
        *((v, None) for v in (2, -1, 0.5, math.nan, None, "", "2", "crowd", [], [1], {})),
    ],
)
def test_flags_are_read_in_every_usual_spelling(value, flag):
    assert read_flag(value) is flag


def test_numbers_may_be_text_but_not_flags():
    assert [read_number(v) for v in (1, "1.5", " -2e1 ", 0.5)] == [1, 1.5, -20, 0.5]
    assert [read_number(v) for v in (None, True, "wide", "", [1], {})] == [None] * 6
    assert read_number(10**400) == math.inf and read_number(-(10**400)) == -math.inf
    assert math.isnan(read_number("nan"))
