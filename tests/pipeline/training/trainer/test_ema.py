"""The exponential moving average of the weights."""

import pytest
import torch
from torch import nn

from pipeline.training.trainer.ema import WeightAverage


def test_average_follows_parameters_and_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, decay=0.9)
    start = average.module[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1.0
    model[1].running_mean += 2.0
    for _ in range(400):
        average.update(model)
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
    average.update(model)
    assert average.module.weight.item() - before == pytest.approx(0.01, abs=1e-5)


def test_average_without_decay_equals_the_model() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.0)
    with torch.no_grad():
        model.weight += 1.0
    average.update(model)
    torch.testing.assert_close(average.module.weight, model.weight)
