"""An optional trace of some training steps: what ran when, on the CPU and the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP_STEPS = 5  # steps that allocate memory, choose kernels and compile
MAX_TABLE_ROWS = 50

Item = TypeVar("Item")
Profile = profile


def profiled(
    batches: Iterable[Item], steps: int, on_profile: Callable[[Profile], None]
) -> Iterator[Item]:
    """Yield the batches; trace ``steps`` iterations of the loop around them, with data loading.

    ``on_profile`` receives the profile, even when the training ends earlier.
    """
    if not steps:
        yield from batches
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=on_profile) as profiler:
        for batch in batches:
            yield batch
            profiler.step()


def operator_table(profiler: Profile) -> str:
    """Return a table of the operators with the longest time of their own, longest first."""
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=MAX_TABLE_ROWS))
