"""An optional trace of some training steps: what ran when, on the CPU and the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED = 5  # steps that find memory, choose kernels and compile

Item = TypeVar("Item")
Profile = profile
Save = Callable[[Profile], None]


def traced(batches: Iterable[Item], steps: int, save: Save) -> Iterator[Item]:
    """Pass on batches; trace ``steps`` rounds of the loop around them, with the wait for data.

    ``save`` gets the profile, also when the training ends earlier.
    """
    if not steps:
        yield from batches
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=save) as profiler:
        for batch in batches:
            yield batch
            profiler.step()


def operators(profiler: Profile) -> str:
    """A table of the operators that took most time by themselves, longest first."""
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=50))
