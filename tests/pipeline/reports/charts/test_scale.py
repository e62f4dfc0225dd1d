"""Test that axes have round ticks and hold every value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reports.charts.scale import fit_scale, range_scale

NUMBERS = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_fitted_axis_holds_all_values_between_round_ends(values) -> None:
    scale = fit_scale(values)
    assert all(-1e-6 <= scale.share(value) <= 1 + 1e-6 for value in values)
    assert 2 <= len(scale.ticks) <= 12
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert (scale.ticks[0], scale.ticks[-1]) == (scale.low, scale.high)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.41, 0.58], ["0.40", "0.45", "0.50", "0.55", "0.60"]),
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([math.nan], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-0.03, 0.0], ["-0.03", "-0.02", "-0.01", "0.00"]),
        ([3, 40], ["0", "10", "20", "30", "40"]),
    ],
)
def test_labels_have_as_many_digits_as_needed(values, labels) -> None:
    assert fit_scale(values).labels() == labels


def test_one_value_is_in_the_middle() -> None:
    assert fit_scale([0.5, 0.5]).share(0.5) == pytest.approx(0.5)
    assert fit_scale([0.0]).share(0.0) == pytest.approx(0.5)


def test_range_keeps_its_ends() -> None:
    scale = range_scale(1.5, 4.0)
    assert (scale.low, scale.high, scale.ticks) == (1.5, 4.0, (2.0, 3.0, 4.0))
    assert range_scale(5, 20).ticks == (5.0, 10.0, 15.0, 20.0)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.01, 0.1, ["0.01", "0.02", "0.05", "0.1"]),
        (1e-5, 1e-1, ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (0.03, 0.04, ["0.03", "0.0346", "0.04"]),
    ],
)
def test_logarithmic_range(low, high, labels) -> None:
    scale = range_scale(low, high, log=True)
    assert scale.labels() == labels
    assert scale.share(low) == 0
    assert scale.share(high) == 1
    assert scale.share(math.sqrt(low * high)) == pytest.approx(0.5)
