"""Switches of Mutual Guidance, off by default: against the plain loops, and their effect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.assign import build_assigner
from model.assign.loops import LOOPS
from model.boxes import box_iou
from model.options import ASSIGNER_OPTIONS, AssignerOptions
from tests.model.assign.random_batches import batch, build, equal
from tests.model.assign.test_against_loops import (
    ADVERSITIES,
    STRIDES,
    as_image,
    assert_all_equal,
    assert_equal,
    random_case,
)

BOTH = ("mutual_guidance", "mutual_guidance_soft")
SWITCHES: list[tuple[str, AssignerOptions]] = [
    *((name, AssignerOptions(static_fraction=0.4)) for name in BOTH),
    ("mutual_guidance_soft", {"centre_radius": 1.5}),
    ("mutual_guidance_soft", {"centre_radius": 0.5, "static_fraction": 0.4}),
    ("mutual_guidance_soft", {"centre_radius": 1.5, "scaled_targets": True}),
    ("mutual_guidance_soft", {"scaled_targets": True}),
    ("mutual_guidance_soft", {"scaled_targets": True, "static_fraction": 0.4}),
]
each_switch = pytest.mark.parametrize(
    ("name", "options"), SWITCHES, ids=[f"{name}-{'-'.join(used)}" for name, used in SWITCHES]
)


@each_switch
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objects=st.sampled_from([1, 2, 5, 9]),
    adversity=st.sampled_from(ADVERSITIES),
    progress=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_switch_equals_the_plain_loop(
    name: str, options: AssignerOptions, seed: int, objects: int, adversity: str, progress: float
) -> None:
    case = random_case(seed, objects, adversity)
    found = build_assigner(name, anchor_strides=STRIDES, **options)(*case, progress=progress)
    expected = LOOPS[name](as_image(case, progress=progress), ASSIGNER_OPTIONS[name](**options))
    assert_equal(found, expected)


@each_switch
def test_switch_has_an_effect_and_reads_no_value_from_the_device(
    name: str, options: AssignerOptions
) -> None:
    case = batch(2, 9)
    case["gt_labels"][1, 4:] = -1
    switched, plain = build(name, **options), build(name)
    assert any(not equal(switched(**case, progress=p), plain(**case)) for p in (0.0, 1.0))
    for assigned in (switched(**case, progress=p) for p in (0.0, 1.0)):
        assert torch.isfinite(assigned.cls_quality).all()
        assert torch.isfinite(assigned.loc_weight).all()
    found = switched(**{key: value.to("meta") for key, value in case.items()})
    assert {x.shape for x in found} == {(2, len(case["anchors"]))}


@each_switch
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_switch_with_degenerate_predictions(
    name: str, options: AssignerOptions, bad: float
) -> None:
    case = batch(2, 5)
    case["pred_boxes"][0] = bad
    case["pred_scores"][:, ::2] = min(max(bad, 0.0), 1.0)
    found = build(name, **options)(**case)
    assert torch.isfinite(found.cls_quality).all() and torch.isfinite(found.loc_weight).all()
    case["gt_labels"].fill_(-1)
    empty = build(name, **options)(**case)
    assert (empty.cls_index == -1).all() and (empty.loc_index == -1).all()
    assert empty.cls_quality.sum() == empty.loc_weight.sum() == 0


@each_switch
def test_switch_compiles_to_one_graph(name: str, options: AssignerOptions) -> None:
    case, assigner = batch(2, 9), build(name, **options)
    compiled = torch.compile(assigner.__call__, backend="aot_eager", fullgraph=True)
    assert equal(compiled(**case), assigner(**case))


@pytest.mark.parametrize("name", BOTH)
def test_static_anchors_choose_in_the_first_part_of_the_training(name: str) -> None:
    case = random_case(4, 9, "none")
    unguided = build_assigner(name, localize_to_classify=False, classify_to_localize=False)
    assigner = build_assigner(name, static_fraction=0.3)
    assert_all_equal(assigner(*case, progress=0.29), unguided(*case))
    assert_all_equal(assigner(*case, progress=0.3), build_assigner(name)(*case))
    always = build_assigner(name, static_fraction=1.0)
    assert_all_equal(always(*case, progress=0.99), unguided(*case))
    if name == "mutual_guidance":
        static = assigner.static_part(*case[:3], progress=0.2)
        assert static is not None
        found = assigner(*case, static=static, progress=0.2)
        assert_all_equal(found, build_assigner("max_iou")(*case))
        assert static.positives.tolist() == [int((found.cls_index >= 0).sum())] * 2


def test_scaled_targets_change_no_choice_and_reach_the_highest_iou() -> None:
    case = random_case(4, 5, "none")
    plain = build_assigner("mutual_guidance_soft")(*case)
    scaled = build_assigner("mutual_guidance_soft", scaled_targets=True)(*case)
    assert torch.equal(scaled.cls_index, plain.cls_index)
    assert torch.equal(scaled.loc_index, plain.loc_index)
    iou = box_iou(case[1], case[3])[0]  # (M, A)
    for index, target in (
        (scaled.cls_index[0], scaled.cls_quality[0]),
        (scaled.loc_index[0], scaled.loc_weight[0]),
    ):
        for g in index[index >= 0].unique().tolist():
            own = index == g
            assert target[own].max().item() == pytest.approx(iou[g][own].max().item())
        assert (target[index < 0] == 0).all()


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_anchors_with_a_centre_far_from_an_object_do_not_learn_it(progress: float) -> None:
    case = random_case(4, 1, "none")
    anchors, gt, labels, _, scores = case
    gt[0, 0] = torch.tensor([21.0, 30.0, 45.0, 33.0])  # 24 x 3 pixels, centre (33, 31.5)
    case = (anchors, gt, labels, gt.expand(1, len(anchors), 4), scores)
    options: AssignerOptions = {"static_fraction": 0.5, "topk": 1000}
    everywhere = build_assigner("mutual_guidance_soft", **options)(*case, progress=progress)
    near = build_assigner(
        "mutual_guidance_soft", anchor_strides=STRIDES, centre_radius=1.5, **options
    )(*case, progress=progress)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2 - torch.tensor([33.0, 31.5])
    limit = torch.maximum(torch.tensor([12.0, 1.5]), 1.5 * STRIDES.unsqueeze(1))
    allowed = (centre.abs() < limit).all(1)
    for index, wide in (
        (near.cls_index, everywhere.cls_index),
        (near.loc_index, everywhere.loc_index),
    ):
        assert (index[0][~allowed] == -1).all() and (index[0][allowed] == 0).any()
        if progress == 1.0 and index is near.cls_index:  # all predictions are exact
            assert torch.equal(index[0] == 0, allowed) and (wide == 0).all()


def test_anchor_near_a_small_object_learns_it_if_a_larger_one_does_not_contain_its_centre() -> None:
    anchors = torch.tensor([[8.0, 8.0, 24.0, 24.0]])  # centre (16, 16)
    gt = torch.tensor([[[17.0, 6.0, 33.0, 26.0], [13.0, 13.0, 18.0, 18.0]]])
    case = (anchors, gt, torch.zeros(1, 2).long(), anchors[None], torch.full((1, 1, 1), 0.1))
    assert build_assigner("mutual_guidance_soft")(*case).cls_index.tolist() == [[0]]
    strides = torch.tensor([1.0])
    found = build_assigner("mutual_guidance_soft", anchor_strides=strides, centre_radius=1.5)(*case)
    assert found.cls_index.tolist() == found.loc_index.tolist() == [[1]]


def test_centre_radius_needs_strides() -> None:
    with pytest.raises(ValueError, match="soft with centre_radius needs anchor_strides"):
        build_assigner("mutual_guidance_soft", centre_radius=1.5)
