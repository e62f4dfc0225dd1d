"""SGD without weight decay on norms and biases, with a warm-up and cosine schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from pipeline.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> SGD:
    """Build SGD with momentum; one-dimensional parameters (norms, biases) are not decayed.

    On a GPU the update is fused into few launches. Elsewhere it is not: the bits may differ.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = True if any(p.device.type == "cuda" for p in parameters) else None
    return SGD(
        groups,
        lr=peak_lr(config),
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused,
    )


def zero_momentum(optimizer: SGD) -> None:
    """Create momentum of 0, which leads to the same first step as none.

    A fused first step that a gradient scaler skips would leave it uninitialised.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def restore_optimizer(optimizer: SGD, state: dict[str, Any]) -> None:
    """Restore the state of an optimizer, which may be of another device."""
    own = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, fused in zip(optimizer.param_groups, own, strict=True):
        group["fused"] = fused


def peak_lr(config: TrainConfig) -> float:
    """Return the peak learning rate, scaled by the global batch but not by the workers."""
    ratio = config.batch_size / config.lr_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def build_schedule(optimizer: SGD, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Build the schedule per step: linear warm-up, then a cosine down to ``final_lr``."""
    warmup = min(config.warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        return warmup_cosine(step, total_steps, warmup, config.final_lr)

    return LambdaLR(optimizer, factor)


def restore_schedule(
    schedule: LambdaLR, optimizer: SGD, state: dict[str, Any], config: TrainConfig
) -> None:
    """Restore the state of a schedule, with the configured peak learning rate.

    The rate may differ from that of the state. Restore the optimizer first.
    """
    schedule.load_state_dict(state)
    peak = peak_lr(config)
    if schedule.base_lrs == [peak] * len(optimizer.param_groups):
        return
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)
    rates = {
        "base_lrs": [peak for _ in optimizer.param_groups],
        "_last_lr": [group["lr"] for group in optimizer.param_groups],
    }
    schedule.load_state_dict({**schedule.state_dict(), **rates})


def warmup_cosine(step: int, total: int, warmup: int, final: float) -> float:
    """Return the fraction of the peak learning rate at a step counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
