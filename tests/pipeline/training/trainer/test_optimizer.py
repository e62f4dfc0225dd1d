"""Parameter groups of the optimizer and the learning rate schedule."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from pipeline.config import Config, TrainConfig
from pipeline.errors import UserError
from pipeline.training.trainer.optimizer import (
    build_optimizer,
    build_schedule,
    restore_optimizer,
    restore_schedule,
    warmup_cosine,
)

ADAMW = TrainConfig(optimizer="adamw")


class Network(nn.Module):
    """A network with a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(2, 2)
        self.backbone = nn.Linear(2, 2)


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


def test_adamw_decays_weights_by_a_share_and_moves_each_by_the_rate() -> None:
    model = nn.Linear(2, 2)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, ADAMW)
    decayed, free = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], free["weight_decay"]) == (1e-3, 0.05, 0.0)
    # The size of a gradient does not count in the first step.
    model(torch.tensor([[1.0, 1000.0]])).sum().backward()
    optimizer.step()
    expected = torch.full((2, 2), 1.0 - 1e-3 * 0.05 - 1e-3)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_backbone_learns_by_its_factor(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, lr=0.4, backbone_lr=0.25, warmup_steps=2)
    model = Network()
    built = build_optimizer(model, config)
    schedule = build_schedule(built, config, total_steps=10)
    groups = built.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.2, 0.2, 0.05, 0.05])
    assert groups[2]["params"] == [model.backbone.weight]
    assert [group["weight_decay"] > 0 for group in groups] == [True, False, True, False]
    built.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.4, 0.4, 0.1, 0.1])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_backbone_has_no_rate(name: str) -> None:
    model = Network()
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, backbone_lr=0.1))
    model.heads(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 0, 0]


def test_resume_with_another_rate_keeps_the_factor_of_the_backbone() -> None:
    before, now = TrainConfig(lr=1.0, backbone_lr=0.5), TrainConfig(lr=0.1, backbone_lr=0.5)
    optimizer = build_optimizer(Network(), before)
    schedule = build_schedule(optimizer, before, total_steps=100)
    for _ in range(50):
        optimizer.step()
        schedule.step()
    resumed = build_optimizer(Network(), now)
    continued = build_schedule(resumed, now, total_steps=100)
    restore_optimizer(resumed, optimizer.state_dict())
    restore_schedule(continued, resumed, schedule.state_dict())
    expected = [rate / 10 for rate in schedule.get_last_lr()]
    assert continued.get_last_lr() == pytest.approx(expected)
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx(expected)


def test_adamw_resumes_from_a_checkpoint_whose_update_was_not_fused() -> None:
    """Earlier versions fused on GPUs only."""
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, ADAMW)
    before = AdamW([{"params": g["params"]} for g in optimizer.param_groups])
    model(torch.ones(1, 2)).sum().backward()
    before.step()
    restore_optimizer(optimizer, before.state_dict())
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    assert optimizer.state[model.bias]["step"] == 1
    optimizer.step()
    assert optimizer.state[model.bias]["step"] == 2


def test_update_on_a_cpu_is_fused_where_that_is_faster() -> None:
    for config, fused in ((ADAMW, True), (TrainConfig(), None)):
        optimizer = build_optimizer(nn.Linear(2, 2), config)
        assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


@pytest.mark.gpu
def test_adamw_moves_between_cpu_and_gpu() -> None:
    cpu, gpu = nn.Linear(2, 2), nn.Linear(2, 2).cuda()
    on_cpu, on_gpu = build_optimizer(cpu, ADAMW), build_optimizer(gpu, ADAMW)
    for model, optimizer, other in ((cpu, on_cpu, on_gpu), (gpu, on_gpu, on_cpu)):
        model(torch.ones(1, 2, device=model.weight.device)).sum().backward()
        optimizer.step()
        restore_optimizer(other, optimizer.state_dict())
    gpu(torch.ones(1, 2, device="cuda")).sum().backward()
    on_gpu.step()
    cpu(torch.ones(1, 2)).sum().backward()
    on_cpu.step()
    assert on_cpu.state[cpu.bias]["step"] == on_gpu.state[gpu.bias]["step"].cpu() == 3


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


def test_nesterov_with_adamw_is_rejected() -> None:
    with pytest.raises(UserError, match="nesterov is true, but optimizer is adamw"):
        Config.from_dict({"train": {"nesterov": True, "optimizer": "adamw"}})
