"""Assigners against plain loops that follow the papers' steps, on random and adversarial images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.anchors import make_anchors
from model.assign import ASSIGNERS, Assignment, build_assigner
from tests.model.assign.loops import (
    LOOPS,
    Answer,
    Image,
    mutual_guidance,
    mutual_guidance_soft,
)

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
STRIDES = make_anchors(64)[1]
ADVERSITIES = ("none", "ties", "identical", "far away", "inverted", "on anchors", "perfect")


def random_case(seed: int, objects: int, adversity: str) -> Case:
    """One image in float64: anchors (A, 4), objects (1, M, 4) and so on."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    anchors = make_anchors(64)[0].double()
    centre, size = rand(1, objects, 2) * 64, rand(1, objects, 2) * 40 + 4
    gt = torch.cat([centre - size / 2, centre + size / 2], -1)
    labels = torch.randint(0, 3, (1, objects), generator=draw)
    boxes = anchors + (rand(1, len(anchors), 4) - 0.5) * 16
    scores = rand(1, len(anchors), 3)
    if adversity == "ties":
        gt, boxes = (gt / 8).round() * 8, (boxes / 8).round() * 8
        scores = scores.round()
    elif adversity == "identical":
        gt, labels = gt[:, :1].expand_as(gt).clone(), labels[:, :1].expand_as(labels).clone()
    elif adversity == "far away":
        gt[:, ::2] += 1e4
    elif adversity == "inverted":
        boxes = torch.where(rand(1, len(anchors), 1) < 0.5, boxes[..., [2, 3, 0, 1]], boxes)
    elif adversity == "on anchors":
        gt[0, :] = anchors[torch.randint(0, len(anchors), (objects,), generator=draw)]
        boxes = anchors[None].clone()
    elif adversity == "perfect":
        boxes = gt[:, torch.arange(len(anchors)) % objects]
        scores = torch.ones_like(scores)
    return anchors, gt, labels, boxes, scores


def as_image(case: Case) -> Image:
    anchors, gt, labels, boxes, scores = case
    return Image(
        anchors.tolist(), STRIDES.tolist(), gt[0].tolist(), labels[0].tolist(), boxes[0].tolist(),
        scores[0].tolist(),
    )  # fmt: skip


def assert_equal(answer: Assignment, expected: Answer) -> None:
    assert answer.cls_index[0].tolist() == expected.cls_index
    assert answer.loc_index[0].tolist() == expected.loc_index
    assert answer.cls_quality[0].tolist() == pytest.approx(expected.cls_quality, abs=1e-12)
    assert answer.loc_weight[0].tolist() == pytest.approx(expected.loc_weight, abs=1e-12)


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objects=st.sampled_from([1, 2, 5, 9, 20]),
    adversity=st.sampled_from(ADVERSITIES),
)
def test_equals_the_plain_loops(name: str, seed: int, objects: int, adversity: str) -> None:
    case = random_case(seed, objects, adversity)
    answer = build_assigner(name, anchor_strides=STRIDES)(*case)
    assert_equal(answer, LOOPS[name](as_image(case)))


@pytest.mark.parametrize("guide_cls", [False, True])
@pytest.mark.parametrize("guide_loc", [False, True])
@pytest.mark.parametrize("adversity", ["none", "ties"])
def test_each_guidance_can_be_switched_off(
    guide_cls: bool, guide_loc: bool, adversity: str
) -> None:
    case = random_case(5, 9, adversity)
    switches = {"localize_to_classify": guide_cls, "classify_to_localize": guide_loc}
    for name, loop in (
        ("mutual_guidance", mutual_guidance),
        ("mutual_guidance_soft", mutual_guidance_soft),
    ):
        expected = loop(as_image(case), 2.0, guide_cls, guide_loc)
        assert_equal(build_assigner(name, **switches)(*case), expected)


def test_mutual_guidance_without_guidance_is_max_iou() -> None:
    case = random_case(6, 9, "none")
    neither = build_assigner(
        "mutual_guidance", localize_to_classify=False, classify_to_localize=False
    )
    for one, other in zip(neither(*case), build_assigner("max_iou")(*case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("adversity", ["none", "ties", "identical", "far away", "on anchors"])
def test_positives_are_known_beforehand(adversity: str) -> None:
    anchors, gt, labels, boxes, scores = random_case(3, 9, adversity)
    for name in ("mutual_guidance", "max_iou", "atss"):
        assigner = build_assigner(name, anchor_strides=STRIDES)
        answer = assigner(anchors, gt, labels, boxes, scores)
        expected = assigner.expected_positives(anchors, gt, labels)
        assert expected is not None
        counts = [int((index >= 0).sum()) for index in (answer.cls_index, answer.loc_index)]
        assert expected.tolist() == counts
        assert math.prod(counts) > 0


@pytest.mark.parametrize("name", ["mutual_guidance_soft", "sim_ota", "task_aligned"])
def test_positives_of_dynamic_assigners_are_not_known_beforehand(name: str) -> None:
    anchors, gt, labels, _, _ = random_case(3, 9, "none")
    assigner = build_assigner(name, anchor_strides=STRIDES)
    assert assigner.expected_positives(anchors, gt, labels) is None
