"""Parameter groups of the optimizer and the learning rate schedule."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD

from pipeline.config import Config, TrainConfig
from pipeline.errors import UserError
from pipeline.training.trainer.optimizer import (
    build_optimizer,
    build_schedule,
    restore_optimizer,
    warmup_cosine,
)


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


def test_state_of_another_device_keeps_the_own_implementation() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, TrainConfig())
    groups = [{"params": group["params"]} for group in optimizer.param_groups]
    on_gpu = SGD(groups, lr=0.5, momentum=0.9, fused=True)
    model(torch.ones(1, 2)).sum().backward()
    on_gpu.step()
    restore_optimizer(optimizer, on_gpu.state_dict())
    assert [group["fused"] for group in optimizer.param_groups] == [None, None]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert torch.equal(optimizer.state[model.bias]["momentum_buffer"], torch.ones(2))


@pytest.mark.gpu
def test_update_on_a_gpu_is_fused() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2).cuda(), TrainConfig())
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def test_nesterov_looks_ahead_by_the_momentum() -> None:
    values = []
    for nesterov in (False, True):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        config = TrainConfig(lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=nesterov)
        optimizer = build_optimizer(model, config)
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        values.append(model.weight.item())
    assert values == pytest.approx([1 - 0.1, 1 - 0.1 * 1.9])


def test_nesterov_without_momentum_is_rejected() -> None:
    with pytest.raises(UserError, match="nesterov is true, but momentum is 0"):
        Config.from_dict({"train": {"nesterov": True, "momentum": 0.0}})
