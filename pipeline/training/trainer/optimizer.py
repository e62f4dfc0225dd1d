"""SGD or AdamW without decay of norms and biases, with a warm-up and cosine schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build SGD with momentum, or AdamW.

    One-dimensional parameters (norms, biases) are not decayed. With ``backbone_lr`` the groups of
    ``model.backbone`` follow the others, so that the first group has the learning rate itself.

    The update of AdamW is fused into one pass on a CPU, and into few launches on a GPU. That of SGD
    is fused on a GPU only: on a CPU there is little to gain, and the bits may differ.
    """
    decay = config.recorded()["weight_decay"]
    peak = peak_lr(config)
    groups: list[dict[str, Any]] = [
        {"params": some, "weight_decay": strength, "lr": peak * factor}
        for parameters, factor in _parts(model, config.backbone_lr)
        for some, strength in (
            ([p for p in parameters if p.ndim > 1], decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        )
    ]
    fusable = ("cuda", "cpu") if config.optimizer == "adamw" else ("cuda",)
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = True if devices and devices.issubset(fusable) else None
    if config.optimizer == "adamw":
        return AdamW(groups, lr=peak, fused=fused)
    return SGD(groups, lr=peak, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def _parts(model: nn.Module, backbone_lr: float) -> list[tuple[list[nn.Parameter], float]]:
    """Return the trained parameters by their factor of the learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if backbone_lr == 1.0:
        return [(parameters, 1.0)]
    own = {id(p) for p in model.get_submodule("backbone").parameters()}
    return [
        ([p for p in parameters if id(p) not in own], 1.0),
        ([p for p in parameters if id(p) in own], backbone_lr),
    ]


def averages_per_parameter(config: TrainConfig) -> int:
    """Return the number of tensors that an optimizer keeps per parameter, of the same shape."""
    return 2 if config.optimizer == "adamw" else 1


def zero_momentum(optimizer: Optimizer) -> None:
    """Create momentum of 0, which leads to the same first step as none.

    A fused first step that a gradient scaler skips would leave it uninitialised. AdamW creates its
    averages as zeros.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore the state of an optimizer, which may be of another device."""
    # Before loading: a fused AdamW counts its steps on the device, another one on the CPU.
    groups = [
        {**saved, "fused": own["fused"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def peak_lr(config: TrainConfig) -> float:
    """Return the peak learning rate, scaled by the global batch but not by the workers."""
    ratio = config.batch_size / config.lr_batch
    rate: float = config.recorded()["lr"]
    return rate * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def build_schedule(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Build the schedule per step: linear warm-up, then a cosine down to ``final_lr``."""
    warmup = min(config.warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        return warmup_cosine(step, total_steps, warmup, config.final_lr)

    return LambdaLR(optimizer, factor)


def restore_schedule(schedule: LambdaLR, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore the state of a schedule, with the configured peak learning rates.

    The rates may differ from those of the state. Restore the optimizer first.
    """
    peaks = list(schedule.base_lrs)
    schedule.load_state_dict(state)
    if schedule.base_lrs == peaks:
        return
    for group, peak, factor in zip(optimizer.param_groups, peaks, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)
    rates = {"base_lrs": peaks, "_last_lr": [group["lr"] for group in optimizer.param_groups]}
    schedule.load_state_dict({**schedule.state_dict(), **rates})


def warmup_cosine(step: int, total: int, warmup: int, final: float) -> float:
    """Return the fraction of the peak learning rate at a step counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
