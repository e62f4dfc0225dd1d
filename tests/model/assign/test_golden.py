"""Assigners against values computed once with the original authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.assign import Assignment, build_assigner

CASES = ("single", "few", "many", "crowd", "tiny", "huge", "calm", "wild")


def assign(name: str, case: dict[str, Tensor]) -> Assignment:
    return build_assigner(name)(
        case["anchors"],
        case["gt_boxes"][None],
        case["gt_labels"][None],
        case["pred_boxes"][None],
        case["pred_logits"].sigmoid()[None],
    )


def as_labels(index: Tensor, labels: Tensor) -> Tensor:
    """Golden arrays name the class where an assignment names the object."""
    return torch.where(index >= 0, labels[index.clamp(min=0)], index)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("assigner", "prefix"), [("mutual_guidance", "paper"), ("max_iou", "iou")])
def test_equals_the_authors_code(shared: Path, name: str, assigner: str, prefix: str) -> None:
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
        case = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    answer = assign(assigner, case)
    assert torch.equal(as_labels(answer.cls_index[0], case["gt_labels"]), case[f"{prefix}_cls"])
    assert torch.equal(answer.loc_index[0], case[f"{prefix}_loc"])
    assert answer.cls_quality.dtype == torch.float64
    assert torch.equal(answer.cls_quality, (answer.cls_index >= 0).double())
    assert torch.equal(answer.loc_weight, (answer.loc_index >= 0).double())
