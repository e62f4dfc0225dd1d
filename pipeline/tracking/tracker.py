"""Logging to a run without waiting for it.

A call appends to a spool on disk and returns in microseconds. One thread sends points, tags and the
status, and one sends files. Neither ever raises into training.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.storage.redact import mask
from pipeline.tracking.spool.offline_runs import save_spool_info
from pipeline.tracking.spool.record_queue import (
    UPLOAD_SUFFIX,
    RecordQueue,
    has_records,
    spool_cache,
)
from pipeline.tracking.spool.records import (
    FileRecord,
    MetricPoints,
    RunStatus,
    SpoolRecord,
    StatusRecord,
    TagRecord,
    decode,
)
from pipeline.tracking.spool.sender import Sender
from pipeline.tracking.spool.sending_thread import SendingThread
from pipeline.tracking.spool.uploader import Uploader
from pipeline.tracking.system_metrics import SystemSampler
from pipeline.tracking.upload import BYTES_PER_SECOND

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
_SAMPLE_SECONDS = 10.0
_JPEG_QUALITY, _FIGURE_DPI = 90, 120
_INVALID_IN_METRIC_NAMES = re.compile(r"[^\w.\- :/]")


class Tracker:
    """Sends metrics, tags and files of one run from background threads.

    Several trackers, in several processes, may share a run and its spool folder. ``sampler``
    returns the system metrics, by default those of this node.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        spool: Path,
        system_metrics: bool = True,
        sampler: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.uri = uri
        self._queue, self._files = RecordQueue(spool), RecordQueue(spool, UPLOAD_SUFFIX)
        self._tags_set: set[str] = set()
        self._sender = Sender(uri, run_id, spool, self._files.append)
        self._uploader = Uploader(self._sender, self._files)
        with self._never_raising("the run of the spool"):
            save_spool_info(spool, uri, run_id)
        self._sampler = (sampler or SystemSampler()) if system_metrics else None
        self._next_sample = time.monotonic() + _SAMPLE_SECONDS
        records = SendingThread(
            self._queue, self._sender.send, lambda: f"run {self.run_id}", mask(uri), self._sample
        )
        files = SendingThread(
            self._files,
            self._uploader.send,
            lambda: f"files of run {self.run_id}",
            mask(uri),
            feeder=records,
        )
        self._threads = [records, files]

    @property
    def run_id(self) -> str:
        """Return the id of the run, which is a placeholder until a store has responded."""
        return self._sender.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point for each metric."""
        with self._never_raising("a point"):
            self._append(MetricPoints(time=_now(), metrics=_clean(metrics), step=int(step)))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run, with secrets masked."""
        self._tags_set.add(key)
        self._append(TagRecord(time=_now(), key=key, value=mask(str(value))))

    def records_in_memory(self) -> list[str]:
        """Return the records that would be lost with this process: the disks are full."""
        lines: list[str] = []
        with self._never_raising("what is in memory"):
            lines = [line.decode() for line in self._queue.in_memory()]
        return lines

    def log_again(self, records: Iterable[str]) -> None:
        """Add records of `records_in_memory` of another process, unless this one has newer values.

        A point is not sent twice, a tag that this tracker has set stays, and a status is that of
        the other process only.
        """
        for line in records:
            with self._never_raising("a record of a checkpoint"):
                record = decode(line.encode())
                is_unset = isinstance(record, TagRecord) and record.key not in self._tags_set
                if is_unset or isinstance(record, MetricPoints):
                    self._queue.append(record)

    def set_status(self, status: RunStatus) -> None:
        """Set the status of the run."""
        self._append(StatusRecord(time=_now(), status=status))

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Add a copy of a file to the run's artifacts. The file may be deleted afterwards."""
        with self._never_raising(f"artifact {path}"):
            source = Path(path)
            self._store_file(source.name, folder, lambda copy: shutil.copyfile(source, copy))

    def log_text(self, text: str, path: str) -> None:
        """Add a text as the artifact ``path``, with secrets masked."""
        with self._never_raising(f"artifact {path}"):
            write = partial(Path.write_text, data=mask(text), encoding="utf-8")
            self._store_file(Path(path).name, _parent(path), write)

    def log_image(self, image: np.ndarray, path: str) -> None:
        """Add an RGB image (H,W,3) uint8 as the artifact ``path``, a .jpg or .png."""
        with self._never_raising(f"artifact {path}"):
            from PIL import Image

            write = partial(Image.fromarray(image).save, quality=_JPEG_QUALITY)
            self._store_file(Path(path).name, _parent(path), write)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Add a matplotlib figure as the artifact ``path``."""
        with self._never_raising(f"artifact {path}"):
            write = partial(figure.savefig, dpi=_FIGURE_DPI)
            self._store_file(Path(path).name, _parent(path), write)

    def close(self, timeout: float = 30.0, *, last: bool = True) -> bool:
        """Send what is queued within ``timeout`` seconds. Return whether everything was sent.

        A file that is being sent at that time may take longer, depending on its size. Report what
        is not sent; a tracker that is not the ``last`` one of the run leaves that to the last one
        for folders that both see.
        """
        for thread in self._threads:
            thread.start_closing(timeout)
        sent = [thread.join(self._upload_seconds) for thread in self._threads]
        if not all(sent):
            self._report_queued(last)
        dropped = self._queue.dropped + self._files.dropped
        if dropped:
            _LOG.warning(
                "run %s: %d records were dropped: disk and memory are full", self.run_id, dropped
            )
        return all(sent) and not dropped and not self._uploader.rejected

    def retry_rejected(self) -> None:
        """Queue the files again that the store has rejected for good."""
        with self._never_raising("a rejected file"):
            self._uploader.retry_rejected()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _report_queued(self, last: bool) -> None:
        folders = [folder for folder in self._queue.folders if has_records(folder)]
        for folder in folders:  # also in the cache, for `sync`
            with self._never_raising("the run of the spool"):
                save_spool_info(folder, self.uri, self.run_id)
        if not last:
            folders = [folder for folder in folders if folder.parent == spool_cache()]
            if not folders:
                return
        # The cache is that of a node, which may be another one than the driver's.
        node = f" on {platform.node()}" if spool_cache() in {f.parent for f in folders} else ""
        where = (" and ".join(map(str, folders)) or "memory") + node
        if deleted := next((one.deleted for one in self._threads if one.deleted), None):
            _LOG.warning(
                "%s and run `python -m jobs.tracking sync` to send the rest, which is queued in %s",
                deleted,
                where,
            )
            return
        _LOG.warning(
            "run %s: %s did not accept all records; the rest is queued in %s and is sent when the "
            "run is started again or by `python -m jobs.tracking sync`",
            self.run_id,
            mask(self.uri),
            where,
        )

    def _store_file(self, name: str, folder: str, write: Callable[[Path], object]) -> None:
        path = self._files.store_file(name, write)
        self._files.append(FileRecord(time=_now(), path=str(path), folder=folder))

    def _upload_seconds(self) -> float:
        return self._uploader.size / BYTES_PER_SECOND

    def _append(self, record: SpoolRecord) -> None:
        with self._never_raising("a record"):
            self._queue.append(record)

    @contextlib.contextmanager
    def _never_raising(self, subject: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _LOG.warning("run %s: %s was not recorded: %s", self.run_id, subject, mask(str(error)))

    def _sample(self) -> None:
        if self._sampler and time.monotonic() >= self._next_sample:
            with self._never_raising("a sample of system metrics"):
                if metrics := dict(self._sampler()):
                    self._append(MetricPoints(time=_now(), metrics=metrics, step=None))
            self._next_sample = time.monotonic() + _SAMPLE_SECONDS


def _now() -> int:
    return time.time_ns() // 1_000_000


def _clean(metrics: Mapping[str, float]) -> dict[str, float]:
    return {_INVALID_IN_METRIC_NAMES.sub("_", key): float(value) for key, value in metrics.items()}


def _parent(path: str) -> str:
    folder = str(PurePosixPath(path).parent)
    return "" if folder == "." else folder
