"""What every assigner owes its caller: the first tests are empty, single, single == batched."""

import pytest
import torch
from torch import Tensor

from model.anchors import make_anchors
from model.assign import ASSIGNERS, Assignment, build_assigner
from model.boxes import box_iou

IMAGE = 128
CLASSES = 4


@pytest.fixture(params=sorted(ASSIGNERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch(images: int, objects: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    anchors = make_anchors(IMAGE)[0]
    centre = torch.rand(images, objects, 2, generator=draw) * IMAGE
    size = torch.rand(images, objects, 2, generator=draw) * 60 + 8
    noise = torch.randn(images, len(anchors), 4, generator=draw) * 6
    return {
        "anchors": anchors,
        "gt_boxes": torch.cat([centre - size / 2, centre + size / 2], -1),
        "gt_labels": torch.randint(0, CLASSES, (images, objects), generator=draw),
        "pred_boxes": anchors + noise,
        "pred_scores": torch.rand(images, len(anchors), CLASSES, generator=draw),
    }


def equal(one: Assignment, other: Assignment) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("padded", [0, 3])
def test_no_objects(name: str, padded: int) -> None:
    case = batch(2, padded)
    case["gt_labels"].fill_(-1)
    answer = build_assigner(name)(**case)
    assert (answer.cls_index == -1).all()
    assert (answer.loc_index == -1).all()
    assert answer.cls_quality.sum() == answer.loc_weight.sum() == 0


def test_one_object_keeps_an_anchor(name: str) -> None:
    answer = build_assigner(name)(**batch(1, 1))
    assert (answer.cls_index == 0).any()
    assert (answer.loc_index == 0).any()


def test_batched_equals_one_by_one(name: str) -> None:
    case, assigner = batch(3, 11), build_assigner(name)
    case["gt_labels"][1, 4:] = -1
    case["gt_labels"][2] = -1
    together = assigner(**case)
    for i in range(3):
        rows = {k: v if k == "anchors" else v[i : i + 1] for k, v in case.items()}
        assert equal(assigner(**rows), Assignment(*(x[i : i + 1] for x in together)))


def test_padding_changes_nothing(name: str) -> None:
    case, assigner = batch(2, 7), build_assigner(name)
    rubbish = torch.tensor([10.0, 10.0, 90.0, 90.0]).expand(2, 5, 4)
    padded = {
        **case,
        "gt_boxes": torch.cat([case["gt_boxes"], rubbish], 1),
        "gt_labels": torch.cat([case["gt_labels"], torch.full((2, 5), -1)], 1),
    }
    assert equal(assigner(**case), assigner(**padded))


def test_order_of_objects_only_renames_them(name: str) -> None:
    case, assigner = batch(2, 23), build_assigner(name)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    mixed = {
        **case,
        "gt_boxes": case["gt_boxes"][:, order],
        "gt_labels": case["gt_labels"][:, order],
    }
    plain, shuffled = assigner(**case), assigner(**mixed)
    for one, other in (
        (plain.cls_index, shuffled.cls_index),
        (plain.loc_index, shuffled.loc_index),
    ):
        assert torch.equal(one, torch.where(other >= 0, order[other.clamp(min=0)], other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0, 3e38])
def test_degenerate_predictions(name: str, bad: float) -> None:
    case = batch(2, 5)
    case["pred_boxes"][0] = bad
    case["pred_boxes"][1, ::3, 2] = bad
    case["pred_scores"][:, ::2] = min(max(bad, 0.0), 1.0)
    answer = build_assigner(name)(**case)
    for index in (answer.cls_index, answer.loc_index):
        assert index.min() >= -2
        assert index.max() < 5
    assert torch.isfinite(answer.cls_quality).all()
    assert torch.isfinite(answer.loc_weight).all()
    assert (answer.loc_index[1] >= 0).any()


def test_object_without_any_overlap_gets_nothing(name: str) -> None:
    case = batch(1, 2)
    case["gt_boxes"][0, 1] += 1e4
    answer = build_assigner(name)(**case)
    assert not (answer.cls_index == 1).any()
    assert not (answer.loc_index == 1).any()
    assert (answer.cls_index == 0).any()


def test_half_precision_is_raised(name: str) -> None:
    case = batch(2, 6)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in case.items()}
    raised = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    assert equal(build_assigner(name)(**half), build_assigner(name)(**raised))
    assert build_assigner(name)(**half).loc_weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(build_assigner(name)(**case), build_assigner(name)(**batch(2, 6)))


def test_float32_agrees_with_float64_outside_of_ties(name: str) -> None:
    case = batch(2, 12)
    double = {k: v.double() if v.is_floating_point() else v for k, v in case.items()}
    one, other = build_assigner(name)(**case), build_assigner(name)(**double)
    # An object inside several anchors of one size overlaps them equally, up to rounding.
    overlap = box_iou(double["gt_boxes"], double["anchors"])
    tied = (overlap > overlap.amax(2, keepdim=True) - 1e-6).any(1)
    assert tied.float().mean() < 0.02
    assert torch.equal(one.cls_index[~tied], other.cls_index[~tied])
    assert torch.equal(one.loc_index[~tied], other.loc_index[~tied])
    assert other.cls_quality.dtype == torch.float64


def test_five_hundred_objects(name: str) -> None:
    answer = build_assigner(name)(**batch(1, 500))
    assert len(answer.loc_index.unique()) > 100


def test_no_gradient_flows(name: str) -> None:
    case = batch(1, 3)
    case["pred_boxes"].requires_grad_()
    case["pred_scores"].requires_grad_()
    answer = build_assigner(name)(**case)
    assert not any(x.requires_grad for x in answer)


def test_the_tasks_choose_for_each_other() -> None:
    case = batch(1, 1)
    case["gt_boxes"][0, 0] = torch.tensor([30.0, 30.0, 70.0, 70.0])
    assigner = build_assigner("mutual_guidance")
    before = assigner(**case)
    outsider = int((before.cls_index[0] == -1).nonzero()[0])
    case["pred_boxes"][0, outsider] = case["gt_boxes"][0, 0]
    after = assigner(**case)
    assert after.cls_index[0, outsider] == 0
    assert torch.equal(after.loc_index, before.loc_index)


def test_unknown_names_and_options() -> None:
    with pytest.raises(ValueError, match="choose from: max_iou, mutual_guidance"):
        build_assigner("hungarian")
    with pytest.raises(ValueError, match="no assigner has an option 'topk'"):
        build_assigner("max_iou", topk=9)
    assert build_assigner("max_iou", sigma=3.0) == build_assigner("max_iou")
    assert build_assigner("mutual_guidance", sigma=3.0) != build_assigner("mutual_guidance")
    with pytest.raises(ValueError, match="sigma is 1"):
        build_assigner("mutual_guidance", sigma=1.0)
    with pytest.raises(ValueError, match="ignore_threshold 0.6 is above pos_threshold 0.5"):
        build_assigner("max_iou", ignore_threshold=0.6)
