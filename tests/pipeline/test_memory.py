"""Freed memory stays with the process, so that a step does not wait for fresh pages."""

import multiprocessing
import platform
import resource
from multiprocessing.queues import SimpleQueue

import pytest
import torch

from pipeline.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of glibc")


def _faults(keep: bool, answer: SimpleQueue[int]) -> None:
    if keep:
        assert keep_freed_memory()
    for step in range(10):
        if step == 2:  # by then it has taken what it needs
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        activations = [torch.ones(2**21) for _ in range(10)]  # 8 MB each, as in a step
        del activations
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_the_same_pages_are_used_again() -> None:
    context = multiprocessing.get_context("spawn")
    faults = {}
    for keep in (False, True):
        answer: SimpleQueue[int] = context.SimpleQueue()
        process = context.Process(target=_faults, args=(keep, answer))
        process.start()
        process.join(60)
        faults[keep] = answer.get()
    assert faults[True] < faults[False] / 10
