"""Test that the benchmark of the bootstrap runs and compares equal metrics."""

from benchmarks.bootstrap import measure


def test_small_run_has_equal_bits_and_an_interval() -> None:
    result = measure(images=30, resamples=20, repetitions=1)
    assert result["equal_bits"]["pycocotools"] is True
    value, low, high = result["paired_bootstrap"]["gain"]
    assert low < high and -1 < value < 1
    assert result["bytes_per_image"] < 50_000
