"""Properties that every assigner has, whatever its method."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.assign import ASSIGNERS, Assignment, build_assigner
from tests.model.assign.random_batches import (
    batch,
    build,
    cast,
    close,
    equal,
    rows,
    share_a_best_anchor,
)

each_assigner = pytest.mark.parametrize("name", sorted(ASSIGNERS))
few = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10**6)
object_counts = st.sampled_from([1, 2, 4, 9, 23])


@each_assigner
@pytest.mark.parametrize("padded", [0, 3])
def test_batch_without_objects_is_all_background(name: str, padded: int) -> None:
    case = batch(2, padded)
    case["gt_labels"].fill_(-1)
    found = build(name)(**case)
    assert (found.cls_index == -1).all()
    assert (found.loc_index == -1).all()
    assert found.cls_quality.sum() == found.loc_weight.sum() == 0


@each_assigner
@few
@given(seed=seeds, objects=object_counts)
def test_batched_equals_one_by_one(name: str, seed: int, objects: int) -> None:
    case, assigner = batch(3, objects, seed), build(name)
    case["gt_labels"][1, objects // 2 :] = -1
    case["gt_labels"][2] = -1
    together = assigner(**case)
    for i in range(3):
        alone = assigner(**rows(case, slice(i, i + 1)))
        assert equal(alone, Assignment(*(x[i : i + 1] for x in together)))


@each_assigner
@few
@given(seed=seeds, objects=object_counts, padding=st.integers(1, 9))
def test_padding_changes_nothing(name: str, seed: int, objects: int, padding: int) -> None:
    case, assigner = batch(2, objects, seed), build(name)
    padding_box = torch.tensor([10.0, 10.0, 90.0, 90.0]).expand(2, padding, 4)
    padded = {
        **case,
        "gt_boxes": torch.cat([case["gt_boxes"], padding_box], 1),
        "gt_labels": torch.cat([case["gt_labels"], torch.full((2, padding), -1)], 1),
    }
    assert equal(assigner(**case), assigner(**padded))


@each_assigner
@few
@given(seed=seeds, objects=object_counts)
def test_order_of_objects_only_renames_the_indices(name: str, seed: int, objects: int) -> None:
    case, assigner = batch(2, objects, seed, torch.float64), build(name)
    # The one tie that random batches have: an anchor that is the best of two objects.
    assume(name not in ("max_iou", "mutual_guidance") or not share_a_best_anchor(case))
    order = torch.randperm(objects, generator=torch.Generator().manual_seed(seed))
    mixed = {k: v[:, order] if k.startswith("gt") else v for k, v in case.items()}
    plain, shuffled = assigner(**case), assigner(**mixed)
    renamed = [
        torch.where(index >= 0, order[index.clamp(min=0)], index)
        for index in (shuffled.cls_index, shuffled.loc_index)
    ]
    assert close(plain, shuffled._replace(cls_index=renamed[0], loc_index=renamed[1]))


@each_assigner
@few
@given(seed=seeds, objects=object_counts)
def test_order_of_anchors_only_permutes_the_assignment(name: str, seed: int, objects: int) -> None:
    case = batch(2, objects, seed, torch.float64)
    count = len(case["anchors"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    mixed = {
        **case,
        "anchors": case["anchors"][order],
        "pred_boxes": case["pred_boxes"][:, order],
        "pred_scores": case["pred_scores"][:, order],
    }
    plain, shuffled = build(name)(**case), build(name, order=order)(**mixed)
    assert close(Assignment(*(x[:, order] for x in plain)), shuffled)


@each_assigner
@few
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_scale_changes_nothing(name: str, seed: int, scale: float) -> None:
    case = batch(2, 7, seed, torch.float64)
    boxes = ("anchors", "gt_boxes", "pred_boxes")
    scaled = {k: v * scale if k in boxes else v for k, v in case.items()}
    assert close(build(name)(**case), build(name, scale)(**scaled))


@each_assigner
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=seeds, objects=object_counts)
def test_float32_agrees_with_float64_outside_of_ties(name: str, seed: int, objects: int) -> None:
    case = batch(2, objects, seed)
    one, other = build(name)(**case), build(name)(**cast(case, torch.float64))
    assert other.cls_quality.dtype == torch.float64
    assert close(one, other, atol=1e-5)


@each_assigner
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0, 3e38])
def test_degenerate_predictions_give_a_finite_assignment(name: str, bad: float) -> None:
    case = batch(2, 5)
    case["pred_boxes"][0] = bad
    case["pred_boxes"][1, ::3, 2] = bad
    case["pred_scores"][:, ::2] = min(max(bad, 0.0), 1.0)
    found = build(name)(**case)
    for index in (found.cls_index, found.loc_index):
        assert index.min() >= -2
        assert index.max() < 5
    assert torch.isfinite(found.cls_quality).all()
    assert torch.isfinite(found.loc_weight).all()
    assert (found.loc_index[1] >= 0).any()


@each_assigner
def test_object_without_any_overlap_gets_nothing(name: str) -> None:
    case = batch(1, 2)
    case["gt_boxes"][0, 0] = torch.tensor([40.0, 40.0, 72.0, 80.0])
    case["gt_boxes"][0, 1] += 1e4
    found = build(name)(**case)
    assert not (found.cls_index == 1).any()
    assert not (found.loc_index == 1).any()
    assert (found.cls_index == 0).any()


@each_assigner
@few
@given(seed=seeds)
def test_distant_objects_get_an_anchor_each(name: str, seed: int) -> None:
    case = batch(1, 4, seed)
    corner = torch.tensor([[8.0, 8.0], [72.0, 8.0], [8.0, 72.0], [72.0, 72.0]])
    size = 28 + 20 * torch.rand(4, 2, generator=torch.Generator().manual_seed(seed))
    case["gt_boxes"][0] = torch.cat([corner, corner + size], -1)
    found = build(name)(**case)
    for index in (found.cls_index, found.loc_index):
        assert set(index[index >= 0].tolist()) == {0, 1, 2, 3}


@each_assigner
def test_first_of_identical_objects_gets_all_anchors(name: str) -> None:
    case = batch(2, 3)
    for key in ("gt_boxes", "gt_labels"):
        case[key] = case[key][:, :1].expand_as(case[key]).contiguous()
    found = build(name)(**case)
    alone = {k: v[:, :1] if k.startswith("gt") else v for k, v in case.items()}
    assert equal(found, build(name)(**alone))


@pytest.mark.parametrize("name", ["max_iou", "mutual_guidance"])
def test_best_anchor_of_two_objects_goes_to_the_first(name: str) -> None:
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [60.0, 60.0, 80.0, 80.0]])
    loose, tight = [0.0, 0.0, 20.0, 60.0], [0.0, 0.0, 20.0, 19.0]
    scores = torch.full((1, 2, 1), 0.5)
    for objects in ([loose, tight], [tight, loose]):
        gt = torch.tensor([objects])
        found = build_assigner(name)(anchors, gt, torch.zeros(1, 2).long(), anchors[None], scores)
        assert found.cls_index.tolist() == found.loc_index.tolist() == [[0, -1]]


@each_assigner
def test_half_precision_is_computed_in_float32(name: str) -> None:
    case = batch(2, 6)
    half = cast(case, torch.bfloat16)
    raised = cast(half, torch.float32)
    assert equal(build(name)(**half), build(name)(**raised))
    assert build(name)(**half).loc_weight.dtype == torch.float32


@each_assigner
def test_autocast_changes_nothing(name: str) -> None:
    case = batch(2, 6)
    expected = build(name)(**case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(build(name)(**case), expected)


@each_assigner
def test_five_hundred_objects_are_assigned(name: str) -> None:
    found = build(name)(**batch(1, 500))
    assert len(found.loc_index.unique()) > 100


@each_assigner
def test_inputs_are_unchanged_and_no_gradient_flows(name: str) -> None:
    case = batch(1, 3)
    case["pred_boxes"].requires_grad_()
    case["pred_scores"].requires_grad_()
    before = {k: v.detach().clone() for k, v in case.items()}
    found = build(name)(**case)
    assert not any(x.requires_grad for x in found)
    assert all(torch.equal(case[k], before[k]) for k in case)


@each_assigner
def test_assignment_reads_no_value_from_the_device(name: str) -> None:
    """Meta tensors have no data: reading a value on the host raises."""
    case = {k: v.to("meta") for k, v in batch(2, 9).items()}
    found = build(name)(**case)
    assert {x.shape for x in found} == {(2, len(case["anchors"]))}


@each_assigner
def test_assigner_compiles_to_one_graph(name: str) -> None:
    case, assigner = batch(2, 9), build(name)
    compiled = torch.compile(assigner.__call__, backend="aot_eager", fullgraph=True)
    assert equal(compiled(**case), assigner(**case))


@pytest.mark.slow
@pytest.mark.timeout(900)
@each_assigner
def test_compiled_assigner_gives_the_same_assignment(name: str) -> None:
    case, assigner = batch(2, 9), build(name)
    compiled = torch.compile(assigner.__call__, fullgraph=True)
    assert close(compiled(**case), assigner(**case), atol=1e-6)


def test_regressed_box_changes_classification_only() -> None:
    case = batch(1, 1)
    case["gt_boxes"][0, 0] = torch.tensor([30.0, 30.0, 70.0, 70.0])
    assigner = build("mutual_guidance")
    before = assigner(**case)
    outsider = int((before.cls_index[0] == -1).nonzero()[0])
    case["pred_boxes"][0, outsider] = case["gt_boxes"][0, 0]
    after = assigner(**case)
    assert after.cls_index[0, outsider] == 0
    assert torch.equal(after.loc_index, before.loc_index)


def test_soft_class_target_is_the_iou_of_the_regressed_box() -> None:
    case = batch(1, 1)
    case["gt_boxes"][0, 0] = torch.tensor([30.0, 30.0, 70.0, 70.0])
    case["pred_boxes"][0, 5] = case["gt_boxes"][0, 0]
    found = build("mutual_guidance_soft")(**case)
    assert found.cls_quality[0, 5] == 1.0
    assert found.cls_quality.max() == 1.0
    assert (found.cls_index != -2).all()


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from: atss, max_iou, mutual_guidance"):
        build_assigner("hungarian")
    with pytest.raises(ValueError, match="no assigner has an option 'epsilon'"):
        build_assigner("max_iou", epsilon=9)
    assert build_assigner("max_iou", sigma=3.0) == build_assigner("max_iou")
    assert build_assigner("mutual_guidance", sigma=3.0) != build_assigner("mutual_guidance")
    with pytest.raises(ValueError, match="sigma is 1"):
        build_assigner("mutual_guidance", sigma=1.0)
    with pytest.raises(ValueError, match="ignore_threshold 0.6 is above pos_threshold 0.5"):
        build_assigner("max_iou", ignore_threshold=0.6)
    with pytest.raises(ValueError, match="topk is 0; it must be at least 1"):
        build_assigner("task_aligned", topk=0)
    with pytest.raises(ValueError, match="atss needs anchor_strides"):
        build_assigner("atss")
