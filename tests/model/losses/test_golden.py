"""Losses against values computed once with the original authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.losses import balanced_l1, focal


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
