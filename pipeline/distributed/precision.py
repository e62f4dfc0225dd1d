"""The precision of a network's arithmetic on the devices at hand."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from model.names import TIMM_PREFIX
from pipeline.config import Config
from pipeline.distributed.world import World

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(config: Config, world: World) -> Precision:
    """Return ``train.precision``, where ``auto`` is the fast one of the devices.

    That is bf16 if the devices of all ranks compute in it, else fp16 on GPUs and fp32 on CPUs.
    Every rank calls it.
    """
    precision = config.train.precision
    if precision != "auto":
        return precision
    on_gpu = world.device.type == "cuda"
    # By default torch counts emulation too, which is slower than fp32.
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if on_gpu
        else cpu_computes_bf16() and not config.model.backbone.startswith(TIMM_PREFIX)
    )
    with_bf16 = world.sum(torch.tensor(int(native), device=world.device))
    if int(with_bf16) == world.size:
        return "bf16"
    return "fp16" if on_gpu else "fp32"


def cpu_computes_bf16() -> bool:
    """Return whether this CPU multiplies bf16 numbers itself, so that it is faster than fp32.

    Measured with AVX512-BF16: a step of the included backbones takes as long as in fp32 at 64 px,
    and is 1.2 to 1.9 times as fast from 128 px on. Those of timm may have depthwise convolutions,
    whose gradients in bf16 are slow; see `model.layers.DepthwiseConv`.
    """
    has = torch.cpu.get_capabilities().get
    return torch.backends.mkldnn.is_available() and bool(has("avx512_bf16") or has("amx_bf16"))


def autocast(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a network computes in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _AUTOCAST[precision])
