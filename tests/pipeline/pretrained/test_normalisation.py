"""Networks that expect other pixels compute the same on those of the detector."""

import pytest
import torch
from torch import nn

from model.detector import MEAN, STD
from model.published import Normalisation
from pipeline.pretrained.normalisation import fold_normalisation

EXPECTED = Normalisation((127.0, 120.0, 90.0), (128.0, 100.0, 64.0), "conv", "norm")


def network(bias: bool, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(3, 8, 3, stride=2, bias=bias))
    layers.add_module("norm", nn.BatchNorm2d(8, eps=1e-3))
    nn.init.normal_(layers.norm.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(layers.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return layers.eval()


@pytest.mark.parametrize("bias", [False, True])
def test_folded_network_gives_the_same_on_the_pixels_of_the_detector(bias: bool) -> None:
    published, folded = network(bias), network(bias)
    folded.load_state_dict(fold_normalisation(published.state_dict(), EXPECTED))
    pixels = torch.randint(0, 256, (2, 3, 15, 15)).float()
    one = [torch.tensor(v).view(1, 3, 1, 1) for v in (EXPECTED.mean, EXPECTED.std, MEAN, STD)]
    with torch.no_grad():
        expected = published((pixels - one[0]) / one[1])
        found = folded((pixels - one[2]) / one[3])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (folded[0].weight - published[0].weight).abs().max() > 0.1  # type: ignore[index,operator]


@pytest.mark.parametrize("expected", [None, Normalisation(MEAN, STD, "conv", "norm")])
def test_usual_pixels_change_no_weight(expected: Normalisation | None) -> None:
    state = network(bias=False).state_dict()
    found = fold_normalisation(state, expected)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_source_is_not_changed() -> None:
    state = network(bias=False).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    fold_normalisation(state, EXPECTED)
    assert all(torch.equal(state[name], value) for name, value in before.items())
