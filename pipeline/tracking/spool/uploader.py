"""Sends spooled files to MLflow. A file that is rejected for good is set aside."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.tracking.spool.record_queue import FILES_FOLDER, RecordQueue
from pipeline.tracking.spool.records import FileRecord, SpoolRecord
from pipeline.tracking.spool.sender import Sender
from pipeline.tracking.upload import REJECTED_FOLDER, is_rejected, rejection, upload_timeout

_LOG = logging.getLogger(__name__)


class Uploader:
    """Sends the files of a queue, one at a time.

    A file that fails is tried again after the other files. A file that the server rejects is moved
    to the folder ``rejected`` of the spool, where ``jobs.tracking sync`` finds it.
    """

    def __init__(self, sender: Sender, queue: RecordQueue) -> None:
        self.rejected: set[str] = set()  # artifact paths
        self.size = 0  # of the file that is being sent, in bytes
        self._sender, self._queue = sender, queue
        self._attempts: dict[str, int] = {}

    def send(self, records: Sequence[SpoolRecord]) -> int:
        """Send the first file, or drop it if a later record replaces it. Return 1.

        Raises an exception if it could not be sent and may be accepted later.
        """
        file = records[0]
        assert isinstance(file, FileRecord), "this queue holds files only"
        later = [other for other in records[1:] if isinstance(other, FileRecord)]
        path, artifact = Path(file.path), _artifact_path(file)
        if file.path in (other.path for other in later):
            return 1  # it has failed before and was queued again
        if artifact in map(_artifact_path, later):
            shutil.rmtree(path.parent, ignore_errors=True)
            return 1
        try:
            self._send_file(path, file.folder)
        except Exception as error:
            attempts = self._attempts[file.path] = self._attempts.get(file.path, 0) + 1
            if not is_rejected(error, attempts):
                if later:
                    self._queue.append(file)
                    self._queue.commit(1)
                raise
            self._set_aside(path, artifact, error)
        self._attempts.pop(file.path, None)
        return 1

    def retry_rejected(self) -> None:
        """Queue the files again that were set aside."""
        for folder in self._queue.folders:
            root = folder / REJECTED_FOLDER
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                self._queue.append(
                    FileRecord(
                        time=int(1000 * path.stat().st_mtime),
                        path=str(self._queue.store_file(path.name, path.rename)),
                        folder=path.parent.relative_to(root).as_posix().removeprefix("."),
                    )
                )
            shutil.rmtree(root, ignore_errors=True)

    def _send_file(self, path: Path, folder: str) -> None:
        client = self._sender.client()
        if not path.parent.exists():
            return  # it was sent by a process that ended before it sent the rest of the queue
        if not path.is_file():
            _LOG.warning(
                "run %s: %s no longer exists and was not recorded", self._sender.run_id, path
            )
            return
        with self._measured(path), upload_timeout(self.size):
            client.log_artifact(self._sender.run_id, str(path), folder or None)
        shutil.rmtree(path.parent, ignore_errors=True)

    @contextlib.contextmanager
    def _measured(self, path: Path) -> Iterator[None]:
        self.size = path.stat().st_size
        try:
            yield
        finally:
            self.size = 0

    def _set_aside(self, path: Path, artifact: str, error: Exception) -> None:
        """Move a file out of the queue, and report that once for each artifact."""
        kept = path
        if path.parents[1].name == FILES_FOLDER:
            kept = path.parents[2] / REJECTED_FOLDER / artifact
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept)
            shutil.rmtree(path.parent, ignore_errors=True)
        if artifact not in self.rejected:
            _LOG.warning("%s", rejection(self._sender.run_id, artifact, error, kept))
        self.rejected.add(artifact)


def _artifact_path(file: FileRecord) -> str:
    name = Path(file.path).name
    return f"{file.folder}/{name}" if file.folder else name
