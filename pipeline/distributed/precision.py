"""The precision of a network's arithmetic on the devices at hand."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from pipeline.config import TrainConfig
from pipeline.distributed.world import World

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(config: TrainConfig, world: World) -> Precision:
    """Return ``train.precision``, where ``auto`` is the fast one of the devices.

    That is bf16 if the GPUs of all ranks have it, fp16 on other GPUs, and fp32 on CPUs. Every rank
    calls it.
    """
    if config.precision != "auto":
        return config.precision
    if world.device.type != "cuda":
        return "fp32"
    # By default torch counts emulation too, which is slower than fp32.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    with_bf16 = world.sum(torch.tensor(int(native), device=world.device))
    return "bf16" if int(with_bf16) == world.size else "fp16"


def autocast(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a network computes in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _AUTOCAST[precision])
