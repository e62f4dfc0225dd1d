"""Logging to a run without waiting for it.

A call appends to a spool on disk and returns in microseconds. One thread sends in batches, waits
longer after each failure, and never raises into training.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.storage.redact import first_line, mask
from pipeline.tracking.spool.offline_runs import save_spool_info
from pipeline.tracking.spool.record_queue import RECORD_FILES, RecordQueue
from pipeline.tracking.spool.records import (
    FileRecord,
    MetricPoints,
    RunStatus,
    SpoolRecord,
    StatusRecord,
    TagRecord,
)
from pipeline.tracking.spool.sender import Sender
from pipeline.tracking.system_metrics import SystemSampler

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
_SAMPLE_SECONDS, _BATCH_SECONDS, _MAX_RETRY_SECONDS = 10.0, 1.0, 30.0
_RECORDS_PER_BATCH = 500
_JPEG_QUALITY, _FIGURE_DPI = 90, 120
_INVALID_IN_METRIC_NAMES = re.compile(r"[^\w.\- :/]")


class Tracker:
    """Sends metrics, tags and files of one run from a background thread.

    Several trackers, in several processes, may share a run and its spool folder.
    """

    def __init__(self, uri: str, run_id: str, spool: Path, system_metrics: bool = True) -> None:
        self.uri = uri
        self._sender = Sender(uri, run_id, spool)
        self._queue = RecordQueue(spool)
        with self._never_raising("the run of the spool"):
            save_spool_info(spool, uri, run_id)
        self._sampler = SystemSampler() if system_metrics else None
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

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
        self._append(TagRecord(time=_now(), key=key, value=mask(str(value))))

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

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is queued within ``timeout`` seconds. Return whether everything was sent."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 1.0)
        sent = not self._thread.is_alive() and self._queue.close()
        if not sent:
            self._report_queued()
        if self._queue.dropped:
            _LOG.warning(
                "run %s: %d records were dropped: disk and memory are full",
                self.run_id,
                self._queue.dropped,
            )
        return sent and not self._queue.dropped

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _report_queued(self) -> None:
        folders = [folder for folder in self._queue.folders if any(folder.glob(RECORD_FILES))]
        for folder in folders:  # also in the cache, for `sync`
            with self._never_raising("the run of the spool"):
                save_spool_info(folder, self.uri, self.run_id)
        _LOG.warning(
            "run %s: %s did not accept all records; the rest is queued in %s and is sent when the "
            "run is started again or by `python -m jobs.tracking sync`",
            self.run_id,
            mask(self.uri),
            " and ".join(map(str, folders)) or "memory",
        )

    def _store_file(self, name: str, folder: str, write: Callable[[Path], object]) -> None:
        path = self._queue.store_file(name, write)
        self._append(FileRecord(time=_now(), path=str(path), folder=folder))

    def _append(self, record: SpoolRecord) -> None:
        with self._never_raising("a record"):
            self._queue.append(record)

    @contextlib.contextmanager
    def _never_raising(self, subject: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _LOG.warning("run %s: %s was not recorded: %s", self.run_id, subject, mask(str(error)))

    def _work(self) -> None:
        """Sample, send a batch and wait, until the tracker is closed and the queue is empty."""
        next_sample, wait = time.monotonic() + _SAMPLE_SECONDS, _BATCH_SECONDS
        while True:
            if self._sampler and time.monotonic() >= next_sample:
                with self._never_raising("a sample of system metrics"):
                    load = self._sampler()
                    self._append(MetricPoints(time=_now(), metrics=load, step=None))
                next_sample = time.monotonic() + _SAMPLE_SECONDS
            closing = self._closing.is_set()  # read first: records may be added while sending
            try:
                is_empty = self._send_all() and not (closing and self._queue.take_over_abandoned())
                wait = _BATCH_SECONDS
                if closing and is_empty:
                    return
            except Exception as error:
                self._report_failure(error)
                wait = min(2 * wait, _MAX_RETRY_SECONDS)
            if time.monotonic() > self._deadline:
                return
            if closing:
                time.sleep(_BATCH_SECONDS)
            else:
                self._closing.wait(wait)

    def _send_all(self) -> bool:
        """Send all queued records. Return False if the deadline came first."""
        while records := self._queue.peek(_RECORDS_PER_BATCH):
            while records:
                count = self._sender.send(records)
                self._queue.commit(count)
                del records[:count]
                if time.monotonic() > self._deadline:
                    return False
            if self._failing:
                _LOG.warning("run %s: %s responds again", self.run_id, mask(self.uri))
                self._failing = False
        return True

    def _report_failure(self, error: Exception) -> None:
        if not self._failing:
            reason = first_line(error)
            _LOG.warning("run %s: sending failed, will retry: %.300s", self.run_id, reason)
        self._failing = True


def _now() -> int:
    return time.time_ns() // 1_000_000


def _clean(metrics: Mapping[str, float]) -> dict[str, float]:
    return {_INVALID_IN_METRIC_NAMES.sub("_", key): float(value) for key, value in metrics.items()}


def _parent(path: str) -> str:
    folder = str(PurePosixPath(path).parent)
    return "" if folder == "." else folder
