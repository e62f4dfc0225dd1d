"""Test that resizing keeps positions and averages the pixels that it drops."""

import numpy as np
import pytest

from pipeline.data.transforms.resize import average_areas, to_input


def test_input_is_planar_and_square():
    image = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    out = to_input(image, 64)
    assert out.shape == (3, 64, 64) and out.dtype == np.uint8 and out.flags.c_contiguous


def test_image_of_the_input_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(to_input(image, 64), image.transpose(2, 0, 1))


@pytest.mark.parametrize("factor", [2, 3, 5, 8])
def test_fine_stripes_become_their_mean(factor):
    image = np.zeros((64 * factor, 64 * factor, 3), np.uint8)
    image[:, ::2] = 200
    out = to_input(image, 64)[:, 4:-4, 4:-4]
    # An odd factor covers unequal numbers of stripes; the mean of many pixels is still 100.
    assert abs(out.mean() - 100) < 3 and out.std() < 200 / factor


def test_no_areas_are_averaged_up_to_a_halving():
    image = np.zeros((100, 100, 3), np.uint8)
    assert average_areas(image, 2.0, 2.0) is image
    assert average_areas(image, 2.1, 1.0).shape == (100, 50, 3)
    assert average_areas(image, 9.0, 4.1).shape == (33, 20, 3)
