"""A queue of records on disk: what a killed process or an absent server leaves unsent stays.

Every record is appended to a JSONL file before anything is sent, so memory is bounded and a
SIGKILL loses nothing that was logged. Each process writes its own locked file; a later process of
the same run finds the files whose writers are gone and sends them first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]
ABOUT = "about.json"  # whose records these are
MAX_BYTES = 256 * 2**20
_CHUNK = 2**20


class _File(NamedTuple):
    path: Path
    descriptor: int

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


class Spool:
    """First in, first out over ``folder``; ``append`` and reading may be in different threads."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = _usable(folder)
        self.dropped = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._files = [*_abandoned(self.folder), _create(self.folder)]  # the last one is written
        self._offset = 0
        self._ends: list[int] = []

    def append(self, record: Record) -> None:
        """Add a record; counted in ``dropped`` instead when disk or limit leave no room."""
        line = json.dumps(record).encode() + b"\n"
        own = self._files[-1]
        with self._lock:
            size = own.size()
            try:
                if size + len(line) <= self._max_bytes:
                    if os.write(own.descriptor, line) == len(line):
                        return
                    os.ftruncate(own.descriptor, size)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(own.descriptor, size)
            self.dropped += 1

    def peek(self, limit: int) -> list[Record]:
        """The oldest records, at most ``limit``; they stay until committed."""
        while True:
            records = self._read(limit)
            if records or len(self._files) == 1:
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
            self._files[:0] = found = _abandoned(self.folder)
            return bool(found)

    def new_file(self, name: str) -> Path:
        """A fresh path of this name inside the folder, for a file that a record speaks of."""
        folder = self.folder / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / Path(name).name

    def close(self) -> bool:
        """Remove the folder if everything was committed, else leave it; True if removed."""
        if self.peek(1):
            for file in self._files:
                os.close(file.descriptor)
            return False
        self._files.pop().remove()
        if not any(self.folder.glob("*.jsonl")):  # else another process of the run still writes
            (self.folder / ABOUT).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if (self.folder / "files").is_dir():
                    (self.folder / "files").rmdir()
                self.folder.rmdir()
        return True

    def _read(self, limit: int) -> list[Record]:
        records: list[Record] = []
        self._ends, end = [], self._offset
        for line in self._lines(limit):
            end += len(line)
            # The last line of a killed process may be cut.
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
                self._ends.append(end)
        return records

    def _lines(self, limit: int) -> list[bytes]:
        descriptor, length = self._files[0].descriptor, _CHUNK
        while True:
            data = os.pread(descriptor, length, self._offset)
            whole = data if len(data) < length else data[: data.rfind(b"\n") + 1]
            if whole or not data:
                return whole.splitlines(keepends=True)[:limit]
            length *= 2


def _usable(folder: Path) -> Path:
    """The folder, or one of this process's own where it cannot be written or locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.flock(probe, fcntl.LOCK_EX)
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tracking-"))


def _create(folder: Path) -> _File:
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
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.append(_File(path, descriptor))
            except BlockingIOError:
                os.close(descriptor)
    return files
