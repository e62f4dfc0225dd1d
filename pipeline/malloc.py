"""What the C library does with memory that tensors have left."""

from __future__ import annotations

import contextlib
import ctypes

# glibc's names for what it may be told (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of returned to the kernel; whether glibc did so.

    A training step on a CPU frees and takes the same megabytes over and over. By default large
    blocks go back to the kernel, which fills every page with zeros before it hands it out again: a
    tenth of a step of the slim detector. The process does not grow beyond its peak. Does nothing,
    and answers False, where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError):
        option = ctypes.CDLL(None).mallopt
        kept = option(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        return bool(kept and option(M_TRIM_THRESHOLD, 2**31 - 1))
    return False
