"""Fold the normalisation of a published network into its first layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.detector import MEAN, STD
from model.published import Normalisation


def fold_normalisation(
    state: Mapping[str, Tensor], expected: Normalisation | None
) -> dict[str, Tensor]:
    """Return the weights of the same network for pixels that the detector normalised.

    ``state`` has published names. The scale goes into the weights of the first convolution, (F, 3,
    h, w), the shift into its bias or into the running mean of the batch norm behind it; without
    either, as with ``norm`` None, it is dropped. Outputs are equal except along the border, which
    is padded with the detector's mean.
    """
    folded = dict(state)
    if expected is None:
        return folded
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64) for values in (expected.mean, expected.std)
    )
    # With y the detector's input, the network expects y * scale + shift.
    scale, shift = std / own_std, (mean - own_mean) / own_std
    if torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(mean, own_mean):
        return folded
    weight = state[f"{expected.conv}.weight"]
    offset = (weight.double() * shift.view(1, 3, 1, 1)).sum((1, 2, 3))  # (F,)
    folded[f"{expected.conv}.weight"] = (weight * scale.view(1, 3, 1, 1)).to(weight.dtype)
    bias, running = f"{expected.conv}.bias", f"{expected.norm}.running_mean"
    if bias in state:
        folded[bias] = (state[bias] + offset).to(weight.dtype)
    elif running in state:
        folded[running] = (state[running] - offset).to(weight.dtype)
    return folded
