"""Test that the benchmark of the intervals runs, on intervals that are known."""

import numpy as np
import pytest

from benchmarks.coverage import intervals, measure


def test_methods_agree_on_symmetric_resamples() -> None:
    samples = np.linspace(-1.0, 1.0, 2001)
    found = intervals(0.0, samples, np.linspace(-1.0, 1.0, 20))
    for low, high in found.values():
        assert (low, high) == (pytest.approx(-0.95, abs=1e-3), pytest.approx(0.95, abs=1e-3))


def test_bias_correction_moves_the_interval_towards_the_value() -> None:
    samples = np.linspace(-1.0, 1.0, 2001)  # most resamples are below the value
    found = intervals(0.5, samples, np.linspace(-1.0, 1.0, 20))
    assert found["BC"][0] > found["percentile"][0]
    assert found["basic"] == (pytest.approx(0.05), pytest.approx(1.95))


def test_small_run_counts_every_set() -> None:
    result = measure(sets=2, images=40, size=200, resamples=20)
    for methods in result["coverage"].values():
        for row in methods.values():
            total = row["covered"] + row["too_high"] + row["too_low"]
            assert total == pytest.approx(1.0)
