"""The exponential moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from pipeline.training.trainer.ema import WeightAverage
from tests.launches import CountLaunches


def test_average_follows_parameters_and_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, decay=0.9)
    start = average.module[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1.0
    model[1].running_mean += 2.0
    for _ in range(400):
        average.update()
    assert average.updates == 400
    torch.testing.assert_close(average.module[0].weight, start + 1.0)
    torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean)


def test_average_moves_by_one_minus_decay_after_the_ramp() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.99)
    average.updates = 10_000
    before = average.module.weight.item()
    with torch.no_grad():
        model.weight += 1.0
    average.update()
    assert average.module.weight.item() - before == pytest.approx(0.01, abs=1e-5)


def test_average_without_decay_equals_the_model() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.0)
    with torch.no_grad():
        model.weight += 1.0
    average.update()
    torch.testing.assert_close(average.module.weight, model.weight)


def test_update_takes_two_launches_and_equals_one_by_one() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(5)]
    model = nn.Sequential(*layers)
    average = WeightAverage(model, decay=0.9)
    expected = {name: value.clone() for name, value in average.module.state_dict().items()}
    model(torch.randn(16, 8))
    model.load_state_dict({k: v * 3 for k, v in model.state_dict().items()})  # as by a restore
    with CountLaunches() as launches:
        average.update()
    assert launches.counts == {"aten._foreach_lerp_": 1, "aten._foreach_copy_": 1}
    weight = 1 - 0.9 * (1 - math.exp(-1 / 200))
    for name, value in model.state_dict().items():
        exact = expected[name].lerp(value, weight) if value.is_floating_point() else value
        assert torch.equal(average.module.state_dict()[name], exact), name


def test_decay_rises_over_the_ramp() -> None:
    weights = []
    for ramp in (200.0, 2000.0):
        model = nn.Linear(1, 1)
        average = WeightAverage(model, decay=0.9998, ramp=ramp)
        average.updates = 999
        before = average.module.weight.item()
        with torch.no_grad():
            model.weight += 1.0
        average.update()
        weights.append(average.module.weight.item() - before)
    expected = [1 - 0.9998 * (1 - math.exp(-1000 / ramp)) for ramp in (200, 2000)]
    assert weights == pytest.approx(expected, abs=1e-5)
