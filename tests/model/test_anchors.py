"""The anchors of the paper."""

import math

import pytest
import torch

from model.anchor_shapes import AnchorShapes, level_strides
from model.anchors import make_anchors


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


def test_anchors_of_the_paper_are_the_same_bits() -> None:
    """Computed here as they were before they could be configured."""
    row = []
    for scale in (1.0, math.sqrt(2.0)):
        for ratio in (1.0, 2.0, 0.5):
            half = torch.tensor(
                [24.0 * scale * math.sqrt(ratio), 24.0 * scale / math.sqrt(ratio)],
                dtype=torch.float64,
            )
            row.append(torch.cat([4 - half / 2, 4 + half / 2]))
    assert torch.equal(make_anchors(320)[0][:6], torch.stack(row).float())


def test_order_and_sizes_of_other_shapes() -> None:
    anchors, strides = make_anchors(64, AnchorShapes(16.0, (1.0, 2.0), (4.0,)))
    sizes = anchors[:, 2:] - anchors[:, :2]
    assert sizes[:3].tolist() == [[32, 8], [64, 16], [32, 8]]
    assert sizes[strides == 64].tolist() == [[256, 64], [512, 128]]


def test_clamped_anchors_are_no_longer_than_the_input_and_keep_their_centres() -> None:
    anchors, clamped = (make_anchors(320, AnchorShapes(clamp=on))[0] for on in (False, True))
    assert int((anchors != clamped).any(1).sum()) == 50  # as the authors' code has
    sides = clamped[:, 2:] - clamped[:, :2]
    assert sides.max() == 320
    assert torch.equal(anchors[:, :2] + anchors[:, 2:], clamped[:, :2] + clamped[:, 2:])
    expected = (anchors[:, 2:] - anchors[:, :2]).clamp(max=320)
    torch.testing.assert_close(sides, expected)
