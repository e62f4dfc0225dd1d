"""Freed memory stays with the process, so that a step does not wait for new pages."""

import ctypes
import multiprocessing
import platform
import resource
from multiprocessing.queues import SimpleQueue

import pytest

from pipeline.malloc import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

BLOCK = 20 * 2**20  # together more than glibc keeps by default


def _faults(keep: bool, answer: SimpleQueue[int]) -> None:
    if keep:
        assert keep_freed_memory()
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    c.free.argtypes = [ctypes.c_void_p]
    before = 0
    for step in range(6):
        if step == 2:  # all memory is allocated after two steps
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [c.malloc(BLOCK) for _ in range(4)]
        for block in blocks:
            ctypes.memset(block, 1, BLOCK)
        for block in blocks:
            c.free(block)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_freed_pages_are_reused() -> None:
    context = multiprocessing.get_context("spawn")
    faults = {}
    for keep in (False, True):
        answer: SimpleQueue[int] = context.SimpleQueue()
        process = context.Process(target=_faults, args=(keep, answer))
        process.start()
        process.join(60)
        faults[keep] = answer.get()
    assert faults[True] < faults[False] / 10
