"""A queue of records on disk, which keeps what a killed process or an absent server left unsent.

Every record is appended to a JSONL file before it is sent, so memory is bounded and SIGKILL loses
nothing that was logged. Each process writes its own locked file. A later process of the same run
takes over the files of dead writers and sends them first. When the folder is full or read-only,
records go to the cache of this machine, and when that is full too, to memory, until there is space
again. Files to upload have a queue in the same folder, for which no other record waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.storage.cache_dir import user_cache
from pipeline.storage.lock import lock_descriptor
from pipeline.tracking.spool.records import NewerRecordError, SpoolRecord, decode, encode
from pipeline.tracking.upload import REJECTED_FOLDER

_LOG = logging.getLogger(__name__)
SPOOL_INFO_FILE = "about.json"
RECORD_SUFFIX, UPLOAD_SUFFIX = ".jsonl", ".uploads"
FILES_FOLDER = "files"
MAX_BYTES = 256 * 2**20
_CHUNK_BYTES, _PROBE_BYTES = 2**20, 16 * 2**10
_SPACE_SECONDS = 5.0  # between two looks for space on the disks


class _RecordFile(NamedTuple):
    path: Path | None  # None: in memory
    descriptor: int

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def spool_cache() -> Path:
    """Return the directory of spools that are not stored next to the run's checkpoints."""
    return user_cache("spool")


def cached_spool(name: str) -> Path:
    """Return the spool folder in the cache for a run or for another spool folder."""
    return spool_cache() / hashlib.sha256(name.encode()).hexdigest()[:16]


def has_records(folder: Path) -> bool:
    """Return whether a spool folder has files of any queue."""
    return any(any(folder.glob(f"*{suffix}")) for suffix in (RECORD_SUFFIX, UPLOAD_SUFFIX))


class RecordQueue:
    """First in, first out, over a spool folder and the cache.

    One thread may append while another one reads. Queues of the same folder are kept apart by the
    ``suffix`` of their files.
    """

    def __init__(
        self, folder: Path, suffix: str = RECORD_SUFFIX, max_bytes: int = MAX_BYTES
    ) -> None:
        self.folders = [folder, cached_spool(str(folder))]
        self.dropped = 0
        self._suffix, self._max_bytes = suffix, max_bytes
        self._lock = threading.Lock()
        self._untried_folders = iter(self.folders)
        self._tried = time.monotonic()  # the disks, for space
        self._newer_files: set[Path] = set()
        self._files = [*self._lock_abandoned(), self._open_next()]  # the last one is written to
        self._offset = 0
        self._record_ends: list[int] = []

    def append(self, record: SpoolRecord) -> None:
        """Add a record. Count it in ``dropped`` instead if disk and memory are full."""
        line = encode(record)
        with self._lock:
            self._leave_memory()
            while self._files[-1].size() + len(line) <= self._max_bytes:
                if _append_line(self._files[-1], line):
                    return
                if self._files[-1].path is None:
                    break
                self._files.append(self._open_next())
            self.dropped += 1

    def peek(self, limit: int) -> list[SpoolRecord]:
        """Return the oldest records, at most ``limit``. They stay until `commit` removes them."""
        while True:
            is_written_to = len(self._files) == 1  # checked first: such a file grows while read
            try:
                records = self._read(limit)
            except NewerRecordError as error:
                self._skip_newer_file(error)
                continue
            if records or is_written_to:
                return records
            with self._lock:
                self._files.pop(0).remove()
                self._offset = 0

    def commit(self, count: int) -> None:
        """Remove the first ``count`` records of the last `peek`."""
        if not count:
            return
        self._offset = self._record_ends[count - 1]
        del self._record_ends[:count]
        with self._lock:
            if len(self._files) == 1 and self._offset == self._files[0].size():
                os.ftruncate(self._files[0].descriptor, 0)
                self._offset, self._record_ends = 0, []

    def in_memory(self) -> list[bytes]:
        """Return the lines of the records that are not sent and would be lost with this process."""
        with self._lock:
            lines = []
            for number, file in enumerate(self._files):
                if file.path is None:
                    start = 0 if number else self._offset
                    lines += os.pread(file.descriptor, file.size(), start).splitlines(keepends=True)
            return lines

    def take_over_abandoned(self) -> bool:
        """Take over files whose writers have died. Return whether there were any."""
        with self._lock:
            if len(self._files) > 1 or self._offset:
                return False  # a file that is being read stays first
            self._files[:0] = found = self._lock_abandoned()
            return bool(found)

    def store_file(self, name: str, write: Callable[[Path], object]) -> Path:
        """Call ``write`` with the path of a new file of this name. Return the path.

        Raises OSError if no folder can hold the file.
        """
        for folder in self.folders:
            path = folder / FILES_FOLDER / uuid.uuid4().hex / Path(name).name
            try:
                path.parent.mkdir(parents=True)
                write(path)
                return path
            except OSError:
                shutil.rmtree(path.parent, ignore_errors=True)
                if folder == self.folders[-1]:
                    raise
        raise AssertionError("a queue has folders")

    def close(self) -> bool:
        """Remove committed records and empty folders. Return whether all records were committed.

        Records of a newer version, which stay on disk, were not.
        """
        if self.peek(1):
            self.dropped += len(self.in_memory())
            for file in self._files:
                os.close(file.descriptor)
            return False
        self._files.pop().remove()
        for folder in self.folders:
            with contextlib.suppress(OSError):
                if has_records(folder) or (folder / REJECTED_FOLDER).exists():
                    continue  # another queue of the run is in use, or `sync` finds the run here
                (folder / SPOOL_INFO_FILE).unlink(missing_ok=True)
                if (folder / FILES_FOLDER).is_dir():
                    (folder / FILES_FOLDER).rmdir()
                folder.rmdir()
        return not self._newer_files

    def _leave_memory(self) -> None:
        """Write to a disk again if one has space."""
        if self._files[-1].path is None and time.monotonic() - self._tried > _SPACE_SECONDS:
            self._tried, self._untried_folders = time.monotonic(), iter(self.folders)
            for folder in self._untried_folders:
                with contextlib.suppress(OSError):
                    self._files.append(_create_file(folder, self._suffix))
                    return

    def _open_next(self) -> _RecordFile:
        """Return a file to write to: in the next usable folder, else in memory."""
        for folder in self._untried_folders:
            with contextlib.suppress(OSError):
                return _create_file(folder, self._suffix)
        descriptor = os.memfd_create("spool")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # as for files on disk
        return _RecordFile(None, descriptor)

    def _lock_abandoned(self) -> list[_RecordFile]:
        return [
            file
            for folder in self.folders
            for file in _lock_abandoned(folder, self._suffix, self._newer_files)
        ]

    def _skip_newer_file(self, error: NewerRecordError) -> None:
        """Leave a file with records of a newer version unread, for that version to send."""
        file = self._files.pop(0)
        self._offset = 0
        assert file.path is not None, "this process wrote only records that it can read"
        self._newer_files.add(file.path)
        os.close(file.descriptor)
        _LOG.warning(
            "%s: %s, written by a newer version of this software; update it and run "
            "`python -m jobs.tracking sync` to send the rest of this file",
            file.path,
            error,
        )

    def _read(self, limit: int) -> list[SpoolRecord]:
        records: list[SpoolRecord] = []
        while not records and (lines := self._lines(limit)):
            self._record_ends, end = [], self._offset
            for line in lines:
                end += len(line)
                try:
                    records.append(decode(line))
                    self._record_ends.append(end)
                except NewerRecordError:
                    if not records:
                        raise
                    break
                except ValueError:
                    continue  # the last line of a killed process may be cut
            if not records and not lines[-1].endswith(b"\n"):
                break  # the line may be complete when it is read again
            self._offset = self._offset if records else end
        return records

    def _lines(self, limit: int) -> list[bytes]:
        descriptor, length = self._files[0].descriptor, _CHUNK_BYTES
        while True:
            data = os.pread(descriptor, length, self._offset)
            whole = data if len(data) < length else data[: data.rfind(b"\n") + 1]
            if whole or not data:
                return whole.splitlines(keepends=True)[:limit]
            length *= 2


def _append_line(file: _RecordFile, line: bytes) -> bool:
    """Append a line, or leave the file unchanged. Return whether the line was appended."""
    size = file.size()
    with contextlib.suppress(OSError):
        if os.write(file.descriptor, line) == len(line):
            return True
    with contextlib.suppress(OSError):
        os.ftruncate(file.descriptor, size)
    return False


def _create_file(folder: Path, suffix: str) -> _RecordFile:
    """Create a record file. Raises OSError if the folder is full or does not support locks."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder) as probe:
        lock_descriptor(probe.fileno())
        probe.write(bytes(_PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())
    # Locked before it gets its final name, therefore no other process takes it for abandoned.
    name = folder / f"{time.time_ns():020}-{os.getpid()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
    lock_descriptor(descriptor)
    path = name.with_suffix(suffix)
    name.rename(path)
    return _RecordFile(path, descriptor)


def _lock_abandoned(folder: Path, suffix: str, excluded: set[Path]) -> list[_RecordFile]:
    """Lock and return the record files whose writers have died, oldest first."""
    files = []
    for path in sorted(set(folder.glob(f"*{suffix}")) - excluded):
        with contextlib.suppress(OSError):  # removed since it was listed, or not readable
            descriptor = os.open(path, os.O_RDWR)
            try:
                is_abandoned = lock_descriptor(descriptor, timeout=0)
            except OSError:
                is_abandoned = False
            if is_abandoned:
                files.append(_RecordFile(path, descriptor))
            else:
                os.close(descriptor)
    return files
