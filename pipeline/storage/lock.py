"""Advisory locks between processes. The kernel releases them when their holder ends.

There are two kinds, because they differ when the holder forks:

- `lock_file`, `try_lock_file` and `lock_descriptor` use flock. It belongs to the open file, so it
  also excludes the other threads of the process, and forked children share it.
- `ProcessLock` uses a POSIX record lock. It belongs to the process, so loader processes that
  outlive a killed driver do not keep it, and threads of one process do not exclude each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.05


class LockHeldError(Exception):
    """Another process holds the lock; ``holder`` is what it wrote into the file."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


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


class ProcessLock:
    """A lock that this process holds until `release` and that names its holder.

    Its file must not be opened elsewhere in the process: closing any of its descriptors releases a
    POSIX lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, holder: str) -> None:
        """Take the lock without waiting, and write the name of its ``holder`` into the file.

        Raises LockHeldError if another process holds it, OSError where it cannot be taken.
        """
        self._file = self._open_locked()
        self._file.truncate(0)
        self._file.write(holder)
        self._file.flush()

    def release(self) -> None:
        """Delete the file and release the lock, if it is held."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None

    def _open_locked(self) -> IO[str]:
        while True:
            file = self.path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self.path, file.fileno()):
                    return file
            except (BlockingIOError, PermissionError):  # systems differ
                file.seek(0)
                with file:
                    raise LockHeldError(file.read()) from None
            except BaseException:
                file.close()
                raise
            file.close()  # its holder has just deleted it


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
