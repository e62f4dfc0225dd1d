"""Assigners against their plain loop versions, on random and adversarial images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.anchor_shapes import AnchorShapes
from model.anchors import make_anchors
from model.assign import ASSIGNERS, Assignment, build_assigner
from model.assign.loops import LOOPS, Image, ImageAssignment
from model.options import ASSIGNER_OPTIONS, AssignerOptions

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
STRIDES = make_anchors(64)[1]
ADVERSITIES = ("none", "ties", "identical", "distant", "inverted", "on anchors", "perfect")


def random_case(
    seed: int, objects: int, adversity: str, shapes: AnchorShapes | None = None
) -> Case:
    """Return one image in float64: anchors (A, 4), objects (1, M, 4), labels, boxes, scores."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    anchors = make_anchors(64, shapes)[0].double()
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
    elif adversity == "distant":
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


def as_image(case: Case, strides: Tensor = STRIDES, progress: float = 1.0) -> Image:
    anchors, gt, labels, boxes, scores = case
    return Image(
        anchors.tolist(), strides.tolist(), gt[0].tolist(), labels[0].tolist(), boxes[0].tolist(),
        scores[0].tolist(), progress,
    )  # fmt: skip


def assert_equal(found: Assignment, expected: ImageAssignment) -> None:
    assert found.cls_index[0].tolist() == expected.cls_index
    assert found.loc_index[0].tolist() == expected.loc_index
    assert found.cls_quality[0].tolist() == pytest.approx(expected.cls_quality, abs=1e-12)
    assert found.loc_weight[0].tolist() == pytest.approx(expected.loc_weight, abs=1e-12)


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objects=st.sampled_from([1, 2, 5, 9, 20]),
    adversity=st.sampled_from(ADVERSITIES),
    progress=st.sampled_from([0.0, 0.3, 1 / 3, 0.5, 1.0]),
)
def test_assigner_equals_its_plain_loop(
    name: str, seed: int, objects: int, adversity: str, progress: float
) -> None:
    case = random_case(seed, objects, adversity)
    found = build_assigner(name, anchor_strides=STRIDES)(*case, progress=progress)
    expected = LOOPS[name](as_image(case, progress=progress), ASSIGNER_OPTIONS[name]())
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("atss", {"candidates": 3}),
        ("max_iou", {"pos_threshold": 0.6, "ignore_threshold": 0.3}),
        ("mutual_guidance", {"sigma": 1.2, "pos_threshold": 0.6, "ignore_threshold": 0.3}),
        ("mutual_guidance_soft", {"sigma": 4.0, "topk": 5}),
        ("sim_ota", {"topk": 4, "radius": 1.0, "iou_weight": 0.5}),
        ("sim_ota", {"iou_targets": False}),
        ("task_aligned", {"topk": 4, "alpha": 0.5, "beta": 2.0}),
    ],
)
def test_options_have_the_same_effect_in_the_plain_loop(
    name: str, options: AssignerOptions
) -> None:
    case = random_case(7, 9, "none")
    found = build_assigner(name, anchor_strides=STRIDES, **options)(*case)
    expected = LOOPS[name](as_image(case), ASSIGNER_OPTIONS[name](**options))
    assert expected != LOOPS[name](as_image(case), ASSIGNER_OPTIONS[name]())
    assert_equal(found, expected)


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.3, 1.7)])
def test_other_numbers_of_anchors_per_cell(name: str, scales: tuple[float, ...]) -> None:
    shapes = AnchorShapes(16.0, scales, (1.0, 3.0))
    strides = make_anchors(64, shapes)[1]
    case = random_case(3, 9, "none", shapes)
    assigner = build_assigner(name, anchor_strides=strides, anchors_per_cell=shapes.per_cell)
    expected = LOOPS[name](as_image(case, strides), ASSIGNER_OPTIONS[name]())
    assert_equal(assigner(*case), expected)


@pytest.mark.parametrize("adversity", ADVERSITIES)
def test_sim_ota_without_iou_targets_chooses_the_same_anchors(adversity: str) -> None:
    case = random_case(2, 9, adversity)
    soft = build_assigner("sim_ota", anchor_strides=STRIDES)(*case)
    hard = build_assigner("sim_ota", anchor_strides=STRIDES, iou_targets=False)(*case)
    assert_all_equal(hard._replace(cls_quality=soft.cls_quality), soft)
    assert torch.equal(hard.cls_quality, (hard.cls_index >= 0).double())
    assert torch.equal(soft.loc_weight, (soft.loc_index >= 0).double())


@pytest.mark.parametrize("guide_cls", [False, True])
@pytest.mark.parametrize("guide_loc", [False, True])
@pytest.mark.parametrize("adversity", ["none", "ties"])
def test_guidance_of_each_task_can_be_switched_off(
    guide_cls: bool, guide_loc: bool, adversity: str
) -> None:
    case = random_case(5, 9, adversity)
    switches = {"localize_to_classify": guide_cls, "classify_to_localize": guide_loc}
    for name in ("mutual_guidance", "mutual_guidance_soft"):
        expected = LOOPS[name](as_image(case), ASSIGNER_OPTIONS[name](**switches))
        assert_equal(build_assigner(name, **switches)(*case), expected)


def test_mutual_guidance_without_guidance_is_max_iou() -> None:
    case = random_case(6, 9, "none")
    neither = build_assigner(
        "mutual_guidance", localize_to_classify=False, classify_to_localize=False
    )
    for one, other in zip(neither(*case), build_assigner("max_iou")(*case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("fraction", "progress", "first"),
    [
        (1 / 3, 0.0, "atss"),
        (1 / 3, 3 / 10, "atss"),
        (1 / 3, 4 / 12, "task_aligned"),
        (1 / 3, 1.0, "task_aligned"),
        (0.0, 0.0, "task_aligned"),
        (0.9, 0.8, "atss"),
    ],
)
def test_atss_assigns_the_first_part_of_a_training_with_task_aligned(
    fraction: float, progress: float, first: str
) -> None:
    case = random_case(4, 9, "none")
    assigner = build_assigner("task_aligned", anchor_strides=STRIDES, static_fraction=fraction)
    expected = build_assigner(first, anchor_strides=STRIDES)(*case)
    assert_all_equal(assigner(*case, progress=progress), expected)
    static = assigner.static_part(*case[:3], progress=progress)
    assert (static is not None) == (first == "atss")
    assert_all_equal(assigner(*case, static=static, progress=progress), expected)


def assert_all_equal(found: Assignment, expected: Assignment) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_task_aligned_needs_strides_only_while_atss_assigns() -> None:
    case = random_case(4, 2, "none")
    build_assigner("task_aligned")(*case)
    with pytest.raises(ValueError, match="task_aligned with static_fraction needs anchor_strides"):
        build_assigner("task_aligned")(*case, progress=0.2)


@pytest.mark.parametrize("progress", [-0.1, 1.01, math.nan])
def test_progress_out_of_bounds_is_rejected(progress: float) -> None:
    with pytest.raises(ValueError, match=r"it must be in \[0, 1\]: step / total steps"):
        build_assigner("max_iou")(*random_case(4, 2, "none"), progress=progress)


@pytest.mark.parametrize("adversity", ["none", "ties", "identical", "distant", "on anchors"])
def test_static_part_has_the_assigned_positives(adversity: str) -> None:
    anchors, gt, labels, boxes, scores = random_case(3, 9, adversity)
    for name in ("mutual_guidance", "max_iou", "atss"):
        assigner = build_assigner(name, anchor_strides=STRIDES)
        found = assigner(anchors, gt, labels, boxes, scores)
        static = assigner.static_part(anchors, gt, labels)
        assert static is not None
        reused = assigner(anchors, gt, labels, boxes, scores, static=static)
        assert all(torch.equal(one, other) for one, other in zip(reused, found, strict=True))
        counts = [int((index >= 0).sum()) for index in (found.cls_index, found.loc_index)]
        assert static.positives.tolist() == counts
        assert math.prod(counts) > 0


@pytest.mark.parametrize("name", ["mutual_guidance_soft", "sim_ota", "task_aligned"])
def test_dynamic_assigners_have_no_static_part(name: str) -> None:
    anchors, gt, labels, _, _ = random_case(3, 9, "none")
    assigner = build_assigner(name, anchor_strides=STRIDES)
    assert assigner.static_part(anchors, gt, labels) is None
