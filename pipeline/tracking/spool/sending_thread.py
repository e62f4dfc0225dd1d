"""A thread that sends the records of one queue and retries until they are accepted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pipeline.storage.redact import first_line
from pipeline.tracking.client import RunDeletedError
from pipeline.tracking.spool.record_queue import RecordQueue
from pipeline.tracking.spool.records import SpoolRecord

_LOG = logging.getLogger(__name__)
_BATCH_SECONDS, _MAX_RETRY_SECONDS = 1.0, 30.0
_RECORDS_PER_BATCH = 500


class SendingThread:
    """Sends a queue in batches and waits longer after each failure.

    ``send`` sends the first of the given records and returns how many. ``subject`` and ``store``
    name the queue in warnings. ``before_batch`` is called before each batch. ``feeder`` may add
    records until it ends, so this thread ends after it.
    """

    def __init__(
        self,
        queue: RecordQueue,
        send: Callable[[list[SpoolRecord]], int],
        subject: Callable[[], str],
        store: str,
        before_batch: Callable[[], None] = lambda: None,
        feeder: SendingThread | None = None,
    ) -> None:
        self.queue = queue
        self._send, self._subject, self._store = send, subject, store
        self._before_batch, self._feeder = before_batch, feeder
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._failing = False
        self.deleted: RunDeletedError | None = None  # the last failure, if it was that
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def start_closing(self, timeout: float) -> None:
        """End when the queue is empty, or after ``timeout`` seconds. Return at once."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()

    def join(self, more: Callable[[], float] = lambda: 0.0) -> bool:
        """Wait until the deadline for the end, then the seconds of ``more``.

        Return whether all was sent.
        """
        self._thread.join(max(0.0, self._deadline - time.monotonic()) + 1.0)
        if self._thread.is_alive():
            self._thread.join(more())
        return not self._thread.is_alive() and self.queue.close()

    def _work(self) -> None:
        """Send a batch and wait, until the thread is closed and the queue is empty."""
        wait = _BATCH_SECONDS
        while True:
            self._before_batch()
            closing = self._closing.is_set()  # read first: records may be added while sending
            fed = self._feeder is not None and self._feeder._thread.is_alive()
            try:
                is_empty = self._send_all() and not (closing and self.queue.take_over_abandoned())
                wait = _BATCH_SECONDS
                if closing and is_empty and not fed:
                    return
            except Exception as error:
                self._report_failure(error)
                self.deleted = error if isinstance(error, RunDeletedError) else None
                if closing and self.deleted:
                    return  # a retry within the timeout would not succeed
                wait = min(2 * wait, _MAX_RETRY_SECONDS)
            if time.monotonic() > self._deadline:
                return
            if closing and fed and self._feeder:
                self._feeder._thread.join(_BATCH_SECONDS)
            elif closing:
                time.sleep(_BATCH_SECONDS)
            else:
                self._closing.wait(wait)

    def _send_all(self) -> bool:
        """Send all queued records. Return False if the deadline came first."""
        while records := self.queue.peek(_RECORDS_PER_BATCH):
            while records:
                count = self._send(records)
                self.queue.commit(count)
                del records[:count]
                if time.monotonic() > self._deadline:
                    return False
            if self._failing:
                _LOG.warning("%s: %s responds again", self._subject(), self._store)
                self._failing = False
        return True

    def _report_failure(self, error: Exception) -> None:
        # Deletion is reported once: here, or by `Tracker.close`.
        if not self._failing and not (
            isinstance(error, RunDeletedError) and self._closing.is_set()
        ):
            reason = first_line(error)
            _LOG.warning("%s: sending failed, will retry: %.300s", self._subject(), reason)
        self._failing = True
