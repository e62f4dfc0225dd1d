"""Switches of Mutual Guidance, off by default: against the plain loops, and their effect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.assign import build_assigner
from model.assign.loops import LOOPS
from model.boxes import box_iou
from model.options import ASSIGNER_OPTIONS, AssignerOptions
from tests.model.assign.random_batches import Batch, batch, build, cast, equal
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
    *((name, AssignerOptions(min_positives=4)) for name in BOTH),
    ("mutual_guidance", {"min_positives": 9, "static_fraction": 0.4}),
    ("mutual_guidance_soft", {"min_positives": 9, "topk": 3}),
    *((name, AssignerOptions(spare_iou=0.3)) for name in BOTH),
    *((name, AssignerOptions(spare_iou=0.3, static_fraction=0.4)) for name in BOTH),
    *((name, AssignerOptions(spare_iou=0.3, localize_to_classify=False)) for name in BOTH),
    ("mutual_guidance_soft", {"spare_iou": 0.3, "centre_radius": 1.5, "topk": 3}),
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
@settings(max_examples=5, deadline=None)
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


@pytest.mark.parametrize("name", BOTH)
def test_all_switches_compile_to_one_graph(name: str) -> None:
    options = AssignerOptions(
        min_positives=4, centre_radius=1.5, scaled_targets=True, spare_iou=0.5
    )
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


def tiny_object(side: float) -> Batch:
    """Return a batch with one object, of which no anchor covers much, and exact predictions."""
    case = batch(1, 1)
    case["gt_boxes"][0, 0] = torch.tensor([60.0, 60.0, 60.0 + side, 60.0 + side])
    case["pred_boxes"] = case["anchors"][None].clone()
    return case


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("floor", [2, 5, 20])
def test_small_object_gets_the_least_number_of_positives(name: str, floor: int) -> None:
    case = tiny_object(5.0)
    plain, raised = build(name)(**case), build(name, min_positives=floor)(**case)
    static = build(name, min_positives=floor).static_part(
        case["anchors"], case["gt_boxes"], case["gt_labels"]
    )
    for one, other in ((plain.cls_index, raised.cls_index), (plain.loc_index, raised.loc_index)):
        assert (one >= 0).sum() == 1 and (other >= 0).sum() == floor
        assert (other[one >= 0] >= 0).all()
    assert static is None or static.positives.tolist() == [floor, floor]


@pytest.mark.parametrize("name", BOTH)
def test_least_number_of_positives_changes_no_object_that_has_more(name: str) -> None:
    case = batch(1, 2)
    case["gt_boxes"][0] = torch.tensor([[20.0, 20.0, 60.0, 55.0], [70.0, 64.0, 110.0, 99.0]])
    plain = build(name)(**case)
    counts = [
        index[0][index[0] >= 0].bincount(minlength=2)
        for index in (plain.cls_index, plain.loc_index)
    ]
    least = int(torch.stack(counts).min())
    assert least > 1
    assert equal(build(name, min_positives=least)(**case), plain)
    assert not equal(build(name, min_positives=least + 1)(**case), plain)


@pytest.mark.parametrize("name", BOTH)
def test_fewer_positives_where_fewer_anchors_overlap_an_object(name: str) -> None:
    case = tiny_object(0.01)
    overlaps = int((box_iou(case["gt_boxes"], case["anchors"]) > 0).sum())
    found = build(name, min_positives=1000)(**case)
    assert 1 < (found.loc_index >= 0).sum() == (found.cls_index >= 0).sum() == overlaps < 1000


def test_scaled_targets_of_tiny_overlaps_do_not_vanish() -> None:
    """In float32, IoU^6 would."""
    case = tiny_object(1e-3)
    options: AssignerOptions = {"scaled_targets": True, "min_positives": 9}
    found = build("mutual_guidance_soft", **options)(**case)
    exact = build("mutual_guidance_soft", **options)(**cast(case, torch.float64))
    chosen = found.cls_index >= 0
    assert chosen.sum() == 9
    ratio = (found.cls_quality / exact.cls_quality)[chosen & (exact.cls_index >= 0)]
    assert len(ratio) > 4 and torch.allclose(ratio, torch.ones_like(ratio), atol=0.05)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("centre_radius", [0.0, 1.5])
def test_background_with_a_good_predicted_box_is_ignored(name: str, centre_radius: float) -> None:
    case = batch(2, 6)
    case["gt_labels"][1] = -1
    plain = build(name, centre_radius=centre_radius)(**case)
    spared = build(name, centre_radius=centre_radius, spare_iou=0.4)(**case)
    iou = box_iou(case["gt_boxes"], case["pred_boxes"]).amax(1)  # (B, A)
    changed = plain.cls_index != spared.cls_index
    assert changed[0].any() and not changed[1].any()
    assert torch.equal(changed[0], (plain.cls_index[0] == -1) & (iou[0] >= 0.4))
    assert (spared.cls_index[changed] == -2).all()
    assert equal(spared._replace(cls_index=plain.cls_index), plain)


def test_best_anchor_of_an_object_without_positives_is_not_spared_for_being_forced() -> None:
    """It counts with its IoU, and not with the 1 that forcing gives it."""
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 60.0]])
    gt = torch.tensor([[[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 18.0]]])
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 16.6]]])
    case = (anchors, gt, torch.zeros(1, 2).long(), boxes, torch.full((1, 2, 1), 0.5))
    for spare_iou, expected in ((0.95, -1), (0.9, -2)):  # its IoU is 0.92
        found = build_assigner("mutual_guidance", spare_iou=spare_iou)(*case)
        assert found.cls_index.tolist() == [[0, expected]]
