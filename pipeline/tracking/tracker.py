"""Rank 0's way to the run: log and forget.

``log`` appends to a spool on disk and returns in microseconds; one thread sends in batches, waits
longer after each failure and never raises into training.
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

from pipeline.storage.redact import mask
from pipeline.tracking.spool.offline_runs import save_about
from pipeline.tracking.spool.record_queue import Record, Spool
from pipeline.tracking.spool.sender import Sender
from pipeline.tracking.system_metrics import SystemSampler

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
_SAMPLE_SECONDS, _BATCH_SECONDS, _LONGEST_WAIT = 10.0, 1.0, 30.0
_RECORDS_PER_BATCH = 500
_NOT_IN_METRIC_NAMES = re.compile(r"[^\w.\- :/]")


class Tracker:
    """Sends metrics, tags and files of one run from a background thread.

    Several trackers, in several processes, may share a run and its spool folder.
    """

    def __init__(self, uri: str, run_id: str, spool: Path, system_metrics: bool = True) -> None:
        self.uri = uri
        self._sender = Sender(uri, run_id, spool)
        self._spool = Spool(spool)
        with self._never_raising("the spool's owner"):
            save_about(spool, uri, run_id)
        self._sampler = SystemSampler() if system_metrics else None
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """The run, by a placeholder until a store knows it."""
        return self._sender.run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point per metric."""
        with self._never_raising("a point"):
            self._append({"metrics": _clean(metrics), "step": int(step)})

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._append({"tag": [key, str(value)]})

    def status(self, status: str) -> None:
        """Set the run's status: RUNNING, or one of MLflow's ends."""
        self._append({"status": status})

    def artifact(self, path: Path | str, folder: str = "") -> None:
        """Add a copy of a file to the run's artifacts; the file may be deleted afterwards."""
        with self._never_raising(f"artifact {path}"):
            source = Path(path)
            self._keep(source.name, folder, lambda copy: shutil.copyfile(source, copy))

    def text(self, text: str, path: str) -> None:
        """Add a text as the artifact ``path``."""
        with self._never_raising(f"artifact {path}"):
            write = partial(Path.write_text, data=text, encoding="utf-8")
            self._keep(Path(path).name, _parent(path), write)

    def picture(self, image: np.ndarray, path: str) -> None:
        """Add an RGB picture (H,W,3) uint8 as the artifact ``path``, a .jpg or .png."""
        with self._never_raising(f"artifact {path}"):
            from PIL import Image

            write = partial(Image.fromarray(image).save, quality=90)
            self._keep(Path(path).name, _parent(path), write)

    def figure(self, figure: Figure, path: str) -> None:
        """Add a matplotlib figure as the artifact ``path``."""
        with self._never_raising(f"artifact {path}"):
            self._keep(Path(path).name, _parent(path), partial(figure.savefig, dpi=120))

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is left, at most ``timeout`` seconds; False if something stays spooled."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 1.0)
        sent = not self._thread.is_alive() and self._spool.close()
        if not sent:
            folders = [folder for folder in self._spool.folders if any(folder.glob("*.jsonl"))]
            for folder in folders:  # the cache too
                with self._never_raising("the spool's owner"):
                    save_about(folder, self.uri, self.run_id)
            _LOG.warning(
                "run %s: %s did not take everything; the rest waits in %s for the next start of "
                "the run or `python -m jobs.tracking sync`",
                self.run_id,
                mask(self.uri),
                " and ".join(map(str, folders)) or "memory",
            )
        if self._spool.dropped:
            _LOG.warning("run %s: %d records found no room", self.run_id, self._spool.dropped)
        return sent and not self._spool.dropped

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, name: str, folder: str, write: Callable[[Path], object]) -> None:
        path = self._spool.keep(name, write)
        self._append({"file": str(path), "folder": folder})

    def _append(self, record: Record) -> None:
        with self._never_raising("a record"):
            self._spool.append({"time": time.time_ns() // 1_000_000, **record})

    @contextlib.contextmanager
    def _never_raising(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _LOG.warning("run %s: %s was not recorded: %s", self.run_id, what, mask(str(error)))

    def _work(self) -> None:
        """Until closed and empty: sample, send a batch, wait."""
        next_sample, wait = time.monotonic() + _SAMPLE_SECONDS, _BATCH_SECONDS
        while True:
            if self._sampler and time.monotonic() >= next_sample:
                with self._never_raising("a system sample"):
                    self._append({"metrics": self._sampler(), "step": None})
                next_sample = time.monotonic() + _SAMPLE_SECONDS
            closing = self._closing.is_set()  # before sending: a record may come in meanwhile
            try:
                emptied = self._send_all() and not (closing and self._spool.adopt())
                wait = _BATCH_SECONDS
                if closing and emptied:
                    return
            except Exception as error:
                self._report_failure(error)
                wait = min(2 * wait, _LONGEST_WAIT)
            if time.monotonic() > self._deadline:
                return
            if closing:
                time.sleep(_BATCH_SECONDS)
            else:
                self._closing.wait(wait)

    def _send_all(self) -> bool:
        while records := self._spool.peek(_RECORDS_PER_BATCH):
            while records:
                count = self._sender.send(records)
                self._spool.commit(count)
                del records[:count]
                if time.monotonic() > self._deadline:
                    return False
            if self._failing:
                _LOG.warning("run %s: %s answers again", self.run_id, mask(self.uri))
                self._failing = False
        return True

    def _report_failure(self, error: Exception) -> None:
        if not self._failing:
            reason = (mask(str(error)).splitlines() or [type(error).__name__])[0]
            _LOG.warning("run %s: cannot send now, will retry: %.300s", self.run_id, reason)
        self._failing = True


def _clean(metrics: Mapping[str, float]) -> dict[str, float]:
    return {_NOT_IN_METRIC_NAMES.sub("_", key): float(value) for key, value in metrics.items()}


def _parent(path: str) -> str:
    folder = str(PurePosixPath(path).parent)
    return "" if folder == "." else folder
