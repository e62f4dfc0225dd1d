"""Configure how the C library reuses the memory of freed tensors."""

from __future__ import annotations

import contextlib
import ctypes

# Options of glibc's mallopt (malloc.h), and the largest threshold that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory for reuse instead of returning it to the kernel.

    A training step on a CPU frees and allocates the same megabytes over and over. By default large
    blocks return to the kernel, which zeroes every page before it hands it out again: a tenth of a
    step of the slim detector. The process does not grow beyond its peak.

    Returns whether glibc accepted the options; False with other C libraries, where it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        option = ctypes.CDLL(None).mallopt
        kept = option(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        return bool(kept and option(M_TRIM_THRESHOLD, 2**31 - 1))
    return False
