"""The choice between GPUs and CPUs where ``ray.gpu`` is ``auto``."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.distributed as dist

from pipeline.progress import counted


class GpuChoice(NamedTuple):
    """Whether each worker gets a GPU, and a line to report if there are GPUs that none gets."""

    used: bool
    note: str | None = None


def choose_gpus(
    setting: bool | Literal["auto"], gpus: int, workers: int, supported: bool | None = None
) -> GpuChoice:
    """Return the choice for a minimum number of workers where there are so many GPUs.

    ``auto`` takes GPUs if each worker can have one. ``supported``: whether torch can communicate
    between GPUs; None to find out.
    """
    if setting != "auto":
        return GpuChoice(setting)
    if not gpus:
        return GpuChoice(False)
    there = f"{counted(gpus, 'GPU')} found"
    if not (dist.is_nccl_available() if supported is None else supported):
        return GpuChoice(False, f"{there}, but torch is built without CUDA: training on CPUs")
    if gpus < workers:
        return GpuChoice(
            False, f"{there} for {workers} workers: training on CPUs; start fewer to use GPUs"
        )
    return GpuChoice(True)
