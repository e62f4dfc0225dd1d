"""A queue of records on disk: what a killed process or an absent server leaves unsent stays.

Every record is appended to a JSONL file before anything is sent, so memory is bounded and a
SIGKILL loses nothing that was logged. Each process writes its own locked file; a later process of
the same run finds the files whose writers are gone and sends them first. Where the folder takes no
more, records go on in the cache of this machine, and where that is full too, in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.storage.cache_dir import user_cache

Record = dict[str, Any]
ABOUT = "about.json"  # whose records these are
MAX_BYTES = 256 * 2**20
_CHUNK, _PROBE_BYTES = 2**20, 16 * 2**10


class _File(NamedTuple):
    path: Path | None  # None: in memory
    descriptor: int

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def cache_folder() -> Path:
    """Where spools lie of runs whose storage is no file system, or is full."""
    return user_cache("spool")


def cached(name: str) -> Path:
    """The folder in the cache that stands for another one."""
    return cache_folder() / hashlib.sha256(name.encode()).hexdigest()[:16]


class Spool:
    """First in, first out over ``folder``; ``append`` and reading may be in different threads."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folders = [folder, cached(str(folder))]
        self.dropped = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._left = iter(self.folders)  # not yet tried
        self._files = [*self._abandoned(), self._next()]  # the last one is written
        self._offset = 0
        self._ends: list[int] = []

    def append(self, record: Record) -> None:
        """Add a record; counted in ``dropped`` instead when disk or limit leave no room."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            while self._files[-1].size() + len(line) <= self._max_bytes:
                if _written(self._files[-1], line):
                    return
                if self._files[-1].path is None:
                    break
                self._files.append(self._next())
            self.dropped += 1

    def peek(self, limit: int) -> list[Record]:
        """The oldest records, at most ``limit``; they stay until committed."""
        while True:
            written = len(self._files) == 1  # before reading: only then may it grow meanwhile
            records = self._read(limit)
            if records or written:
                return records
            self._files.pop(0).remove()
            self._offset = 0

    def commit(self, count: int) -> None:
        """Forget the first ``count`` records of the last ``peek``."""
        if not count:
            return
        self._offset = self._ends[count - 1]
        del self._ends[:count]
        with self._lock:
            if len(self._files) == 1 and self._offset == self._files[0].size():
                os.ftruncate(self._files[0].descriptor, 0)
                self._offset, self._ends = 0, []

    def adopt(self) -> bool:
        """Take over files whose writers are gone by now; whether there were any."""
        with self._lock:
            if len(self._files) > 1 or self._offset:
                return False  # nothing comes before what is being read
            self._files[:0] = found = self._abandoned()
            return bool(found)

    def keep(self, name: str, write: Callable[[Path], object]) -> Path:
        """A file of this name, for a record to speak of, that ``write`` fills; raises OSError."""
        for folder in self.folders:
            path = folder / "files" / uuid.uuid4().hex / Path(name).name
            try:
                path.parent.mkdir(parents=True)
                write(path)
                return path
            except OSError:
                shutil.rmtree(path.parent, ignore_errors=True)
                if folder == self.folders[-1]:
                    raise
        raise AssertionError("there are folders")

    def close(self) -> bool:
        """Remove what was committed, and the folders with it; True if that was everything."""
        if self.peek(1):
            own = self._files[-1]
            if own.path is None:  # ends with this process
                data = os.pread(own.descriptor, own.size(), 0 if self._files[1:] else self._offset)
                self.dropped += data.count(b"\n")
            for file in self._files:
                os.close(file.descriptor)
            return False
        self._files.pop().remove()
        for folder in self.folders:
            with contextlib.suppress(OSError):
                if any(folder.glob("*.jsonl")):  # another process of the run still writes
                    continue
                (folder / ABOUT).unlink(missing_ok=True)
                if (folder / "files").is_dir():
                    (folder / "files").rmdir()
                folder.rmdir()
        return True

    def _next(self) -> _File:
        """A file to write on in: in the first folder that takes one, else in memory."""
        for folder in self._left:
            with contextlib.suppress(OSError):
                return _create(folder)
        descriptor = os.memfd_create("spool")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # as files have it
        return _File(None, descriptor)

    def _abandoned(self) -> list[_File]:
        return [file for folder in self.folders for file in _abandoned(folder)]

    def _read(self, limit: int) -> list[Record]:
        records: list[Record] = []
        while not records and (lines := self._lines(limit)):
            self._ends, end = [], self._offset
            for line in lines:
                end += len(line)
                # The last line of a killed process may be cut.
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
                    self._ends.append(end)
            if not records and not lines[-1].endswith(b"\n"):
                break  # it may be whole at the next look
            self._offset = self._offset if records else end
        return records

    def _lines(self, limit: int) -> list[bytes]:
        descriptor, length = self._files[0].descriptor, _CHUNK
        while True:
            data = os.pread(descriptor, length, self._offset)
            whole = data if len(data) < length else data[: data.rfind(b"\n") + 1]
            if whole or not data:
                return whole.splitlines(keepends=True)[:limit]
            length *= 2


def _written(file: _File, line: bytes) -> bool:
    """Whether the whole line could be appended; else the file is as it was."""
    size = file.size()
    with contextlib.suppress(OSError):
        if os.write(file.descriptor, line) == len(line):
            return True
    with contextlib.suppress(OSError):
        os.ftruncate(file.descriptor, size)
    return False


def _create(folder: Path) -> _File:
    """A new file in the folder. Raises OSError where it cannot be locked or has no room."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder) as probe:
        fcntl.flock(probe, fcntl.LOCK_EX)
        probe.write(bytes(_PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())
    # Locked before it gets its final name, so nobody can take it for abandoned.
    name = folder / f"{time.time_ns():020}-{os.getpid()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path = name.with_suffix(".jsonl")
    name.rename(path)
    return _File(path, descriptor)


def _abandoned(folder: Path) -> list[_File]:
    files = []
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to send
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.append(_File(path, descriptor))
            except OSError:  # its writer lives
                os.close(descriptor)
    return files
