"""Assigners against values computed once with the authors' published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.assign import Assignment, build_assigner

CASES = ("single", "few", "many", "crowd", "tiny", "huge", "calm", "wild")


def load(shared: Path, name: str) -> dict[str, Tensor]:
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def assign(name: str, case: dict[str, Tensor]) -> Assignment:
    return build_assigner(name)(
        case["anchors"],
        case["gt_boxes"][None],
        case["gt_labels"][None],
        case["pred_boxes"][None],
        case["pred_logits"].sigmoid()[None],
    )


def as_labels(index: Tensor, labels: Tensor) -> Tensor:
    """Replace object indices by classes, as in the golden arrays."""
    return torch.where(index >= 0, labels[index.clamp(min=0)], index)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("assigner", "prefix"), [("mutual_guidance", "paper"), ("max_iou", "iou")])
def test_equals_the_authors_code(shared: Path, name: str, assigner: str, prefix: str) -> None:
    case = load(shared, name)
    found = assign(assigner, case)
    assert torch.equal(as_labels(found.cls_index[0], case["gt_labels"]), case[f"{prefix}_cls"])
    assert torch.equal(found.loc_index[0], case[f"{prefix}_loc"])
    assert found.cls_quality.dtype == torch.float64
    assert torch.equal(found.cls_quality, (found.cls_index >= 0).double())
    assert torch.equal(found.loc_weight, (found.loc_index >= 0).double())


@pytest.mark.parametrize("name", CASES)
def test_soft_version_equals_the_authors_code(shared: Path, name: str) -> None:
    case = load(shared, name)
    found = assign("mutual_guidance_soft", case)
    assert torch.equal(as_labels(found.cls_index[0], case["gt_labels"]), case["soft_cls"])
    assert torch.equal(found.loc_index[0], case["soft_loc"])
    for mine, theirs in (
        (found.cls_quality[0], case["soft_quality"]),
        (found.loc_weight[0], case["soft_loc_weight"]),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
