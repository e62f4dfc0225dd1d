"""Parameter groups of the optimizer and the learning rate schedule."""

import itertools

import pytest
from torch import nn

from pipeline.config import TrainConfig
from pipeline.training.trainer.optimizer import build_optimizer, build_schedule, warmup_cosine


def test_schedule_warms_up_and_ends_at_the_final_fraction() -> None:
    values = [warmup_cosine(step, 100, 10, 0.01) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_warm_up_takes_at_most_half_of_a_short_training() -> None:
    model = nn.Linear(2, 2)
    config = TrainConfig(warmup_steps=1000, lr=1.0)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1.0)


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, free = build_optimizer(model, TrainConfig()).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)
