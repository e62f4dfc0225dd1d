"""Losses against values computed once with the authors' published code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.losses import balanced_l1, focal, giou, quality_focal, siou, smooth_l1

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "losses.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize("gamma", [1, 2])
def test_focal(golden: dict[str, Tensor], gamma: int) -> None:
    positive = golden["hard_target"] > 0
    loss = focal(golden["logits"], positive, alpha=0.25, gamma=gamma).sum() / positive.sum()
    torch.testing.assert_close(loss, golden[f"focal_a25_g{gamma}"], rtol=0, atol=1e-9)


def test_balanced_l1(golden: dict[str, Tensor]) -> None:
    loss = balanced_l1(golden["delta_pred"], golden["delta_target"])
    torch.testing.assert_close(loss.mean(), golden["balanced_l1_mean"], rtol=0, atol=1e-9)
    weighted = (loss * golden["weights"][:, None] / 4).sum()
    torch.testing.assert_close(weighted, golden["balanced_l1_weighted"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("poly", "suffix"), [(0.0, ""), (1.0, "_poly1")])
def test_quality_focal(golden: dict[str, Tensor], poly: float, suffix: str) -> None:
    target = golden["soft_target"]
    loss = quality_focal(golden["logits"], target, alpha=0.75, gamma=2.0, poly=poly)
    expected = golden[f"quality_focal_a75_g2{suffix}"]
    torch.testing.assert_close(loss.sum() / (target > 0).sum(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["giou", "siou"])
def test_overlap_losses(golden: dict[str, Tensor], name: str) -> None:
    loss = {"giou": giou, "siou": siou}[name](golden["boxes_pred"], golden["boxes_target"])
    torch.testing.assert_close(loss.mean(), golden[f"{name}_mean"], rtol=0, atol=1e-9)
    weighted = (loss * golden["weights"]).sum()
    torch.testing.assert_close(weighted, golden[f"{name}_weighted"], rtol=0, atol=1e-9)


def test_smooth_l1_joins_its_two_branches() -> None:
    error = torch.tensor([0.0, 0.05, 0.11, 1.0], dtype=torch.float64)
    loss = smooth_l1(error, torch.zeros_like(error), beta=0.11)
    expected = torch.tensor([0.0, 0.05**2 / 0.22, 0.055, 1 - 0.055], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", [giou, siou])
def test_overlap_losses_of_equal_disjoint_and_empty_boxes(loss: Loss) -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]], requires_grad=True
    )
    targets = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    value = loss(boxes, targets)
    assert value[0].item() == pytest.approx(0, abs=1e-6)
    assert value[1] > 1
    value.sum().backward()
    assert boxes.grad is not None
    assert torch.isfinite(boxes.grad).all()
    # The box has to move right to overlap.
    assert boxes.grad[1, [0, 2]].sum() < 0
