"""Box geometry."""

import torch

from model.boxes import MAX_LOG_GROWTH, box_coverage, box_iou, decode, encode


def test_iou_of_known_pairs() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # itself
            [5.0, 0.0, 15.0, 10.0],  # half of it
            [10.0, 0.0, 20.0, 10.0],  # beside it
            [2.0, 2.0, 4.0, 4.0],  # inside
            [5.0, 5.0, 5.0, 5.0],  # empty
            [8.0, 8.0, 2.0, 2.0],  # inverted
        ]
    )
    expected = torch.tensor([[1.0, 1 / 3, 0.0, 0.04, 0.0, 0.0]])
    torch.testing.assert_close(box_iou(box, others), expected)
    assert torch.equal(box_iou(others[4:], others[4:]), torch.zeros(2, 2))


def test_iou_broadcasts_over_batches() -> None:
    boxes, others = torch.rand(3, 5, 4).cumsum(-1), torch.rand(7, 4).cumsum(-1)
    together = box_iou(boxes, others)
    assert together.shape == (3, 5, 7)
    assert torch.equal(together[1], box_iou(boxes[1], others))


def test_coverage_is_a_share_of_the_first_box() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    crowd = torch.tensor([[0.0, 0.0, 6.0, 100.0]])
    torch.testing.assert_close(box_coverage(anchors, crowd), torch.tensor([[0.6], [0.0]]))


def test_encode_of_known_offsets() -> None:
    anchor = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    moved = torch.tensor([[2.0, 1.0, 22.0, 11.0]])
    torch.testing.assert_close(encode(moved, anchor), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    grown = torch.tensor([[-10.0, -5.0, 30.0, 15.0]])
    size = torch.tensor(2.0).log() / 0.2
    torch.testing.assert_close(encode(grown, anchor)[0, 2:], size.expand(2))


def test_decode_inverts_encode() -> None:
    anchors = torch.rand(50, 4, dtype=torch.float64).cumsum(-1)
    boxes = torch.rand(50, 4, dtype=torch.float64).cumsum(-1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)


def test_extreme_boxes_encode_to_finite_offsets() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    assert torch.isfinite(encode(torch.zeros(1, 4), anchor)).all()
    huge = decode(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), anchor)
    width = 16 * torch.tensor(MAX_LOG_GROWTH).exp()
    torch.testing.assert_close(huge[0, 2] - huge[0, 0], width)
