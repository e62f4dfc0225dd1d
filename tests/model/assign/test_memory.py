"""Memory does not grow as images x objects x anchors: no assigner has a number for every pair."""

import pytest
import torch
from torch import Tensor

from benchmarks.assign import IMAGE, highest_bytes, make_batch
from model.anchors import make_anchors
from model.assign import ASSIGNERS, build_assigner
from model.assign.best_object import CPU_BLOCK, DEVICE_BLOCK, GROUP, hold_contests
from model.boxes import box_iou

STRIDES = make_anchors(IMAGE)[1]
ANCHORS = len(STRIDES)
MANY = 500


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
def test_five_hundred_objects_need_less_than_half_a_matrix_of_pairs(name: str) -> None:
    images = 4
    batch = make_batch(images, MANY, classes=3, device="cpu")
    assigner = build_assigner(name, anchor_strides=STRIDES)
    float_per_pair = 4 * images * MANY * ANCHORS
    assert 0 < highest_bytes(lambda: assigner(*batch), "cpu") < float_per_pair / 2


def test_a_matrix_of_pairs_would_be_seen() -> None:
    anchors, boxes = make_batch(1, MANY, classes=3, device="cpu")[:2]
    assert highest_bytes(lambda: box_iou(boxes, anchors), "cpu") >= 4 * MANY * ANCHORS


def block_sizes(images: int, objects: int, device: str) -> list[int]:
    """Anchors of each block that qualities are asked for."""
    sizes: list[int] = []

    def qualities(where: slice | Tensor) -> list[Tensor]:
        assert isinstance(where, slice)
        assert where.start == sum(sizes)
        sizes.append(where.stop - where.start)
        return [torch.zeros(images, objects, sizes[-1], device=device)]

    labels = torch.zeros(images, objects, dtype=torch.int64, device=device)
    (contest,) = hold_contests(qualities, labels, ANCHORS)
    assert contest.owner.shape == (images, ANCHORS)
    return sizes


def test_a_cpu_takes_blocks_that_its_cache_holds() -> None:
    sizes = block_sizes(16, 20, "cpu")
    assert len(sizes) > 8
    assert 16 * 20 * max(sizes) <= CPU_BLOCK


def test_a_device_of_many_launches_takes_a_usual_batch_at_once() -> None:
    assert block_sizes(16, 20, "meta") == [ANCHORS]


def test_a_device_takes_many_objects_in_parts() -> None:
    sizes = block_sizes(16, MANY, "meta")
    assert sum(sizes) == ANCHORS
    assert 16 * MANY * max(sizes) <= DEVICE_BLOCK
    assert max(sizes) < ANCHORS / 16
    assert all(size % GROUP == 0 for size in sizes[:-1])
