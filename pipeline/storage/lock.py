"""Advisory locks between processes. The kernel releases them when their holder ends.

They use flock, which belongs to the open file: it also excludes the other threads of the process,
and forked children share it. For what a process holds for hours, across machines, see `lease`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.05


@contextlib.contextmanager
def lock_file(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of a file inside the block. Raises TimeoutError after ``timeout`` seconds."""
    with try_lock_file(path, timeout) as held:
        if not held:
            raise TimeoutError(f"another process has held {path} for {timeout:g} s")
        yield


@contextlib.contextmanager
def try_lock_file(
    path: Path, timeout: float | None = None, *, required: bool = True
) -> Iterator[bool]:
    """Hold the lock of a file inside the block if it is free within ``timeout`` seconds.

    Yields whether it is held. None waits without limit, 0 does not wait. The file is created, and
    deleted on release. Where the file system has no locks, raises OSError if the lock is
    ``required``, else yields True.
    """
    descriptor = _open_locked(path, timeout, required)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # forked children may have the descriptor open
        os.close(descriptor)


def lock_descriptor(descriptor: int, timeout: float | None = None) -> bool:
    """Lock an open file until it is closed; return whether that succeeded within ``timeout``.

    The timeout is in seconds: None waits without limit, 0 does not wait. Raises OSError where the
    file system has no locks.
    """
    if timeout is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # file systems differ
            left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(POLL_SECONDS, left))


def _open_locked(path: Path, timeout: float | None, required: bool) -> int | None:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not lock_descriptor(descriptor, left):
                os.close(descriptor)
                return None
            if _is_at(path, descriptor):
                return descriptor
        except OSError:
            if not required:
                return descriptor
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has deleted it; lock the one that is there now


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
