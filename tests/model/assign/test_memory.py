"""Memory does not grow as images x objects x anchors: no assigner stores a value per pair."""

import pytest
import torch

from benchmarks.assign import IMAGE, highest_bytes, make_batch
from model.anchors import make_anchors
from model.assign import ASSIGNERS, build_assigner
from model.assign.best_object import (
    CPU_BLOCK,
    DEVICE_BLOCK,
    GROUP,
    anchor_blocks,
    best_object,
    join_blocks,
)
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


def test_memory_of_a_matrix_of_pairs_is_measured() -> None:
    anchors, boxes = make_batch(1, MANY, classes=3, device="cpu")[:2]
    assert highest_bytes(lambda: box_iou(boxes, anchors), "cpu") >= 4 * MANY * ANCHORS


def block_sizes(images: int, objects: int, device: str) -> list[int]:
    """Return the number of anchors of each block."""
    labels = torch.zeros(images, objects, dtype=torch.int64, device=device)
    sizes: list[int] = []
    blocks = []
    for block in anchor_blocks(labels, ANCHORS):
        assert block.start == sum(sizes)
        sizes.append(block.stop - block.start)
        blocks.append(best_object(torch.zeros(images, objects, sizes[-1], device=device)))
    assert join_blocks(blocks).gt_index.shape == (images, ANCHORS)
    return sizes


def test_blocks_on_a_cpu_fit_its_cache() -> None:
    sizes = block_sizes(16, 20, "cpu")
    assert len(sizes) > 8
    assert 16 * 20 * max(sizes) <= CPU_BLOCK


def test_usual_batch_on_a_gpu_is_one_block() -> None:
    assert block_sizes(16, 20, "meta") == [ANCHORS]


def test_many_objects_on_a_gpu_are_several_blocks() -> None:
    sizes = block_sizes(16, MANY, "meta")
    assert sum(sizes) == ANCHORS
    assert 16 * MANY * max(sizes) <= DEVICE_BLOCK
    assert max(sizes) < ANCHORS / 16
    assert all(size % GROUP == 0 for size in sizes[:-1])
