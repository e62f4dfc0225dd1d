"""The anchors of the paper."""

import math

import pytest
import torch

from model.anchors import level_strides, make_anchors


def test_number_of_anchors_and_levels() -> None:
    assert len(make_anchors(320)[0]) == 12_750
    assert level_strides(448) == (8, 16, 32, 64)
    assert level_strides(512) == (8, 16, 32, 64, 128)


@pytest.mark.parametrize("size", [64, 320, 512, 576])
def test_each_anchor_has_the_stride_of_its_level(size: int) -> None:
    anchors, strides = make_anchors(size)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(-1)
    octave = (area / (3 * strides) ** 2).sqrt()
    near = torch.minimum((octave - 1).abs(), (octave - math.sqrt(2)).abs())
    assert near.max() < 1e-4
    cells = [math.ceil(size / stride) ** 2 for stride in level_strides(size)]
    assert strides.unique(return_counts=True)[1].tolist() == [6 * n for n in cells]


def test_order_is_row_column_scale_ratio() -> None:
    anchors, _ = make_anchors(320)
    cell = anchors[:6]
    centre = (cell[:, :2] + cell[:, 2:]) / 2
    torch.testing.assert_close(centre, torch.full((6, 2), 4.0))
    wide, tall = 24 * math.sqrt(2), 24 / math.sqrt(2)
    sizes = torch.tensor([[24.0, 24.0], [wide, tall], [tall, wide]])
    expected = torch.cat([sizes, sizes * math.sqrt(2)])
    torch.testing.assert_close(cell[:, 2:] - cell[:, :2], expected)
    next_column, next_row = anchors[6], anchors[6 * 40]
    torch.testing.assert_close(next_column - anchors[0], torch.tensor([8.0, 0.0, 8.0, 0.0]))
    torch.testing.assert_close(next_row - anchors[0], torch.tensor([0.0, 8.0, 0.0, 8.0]))
