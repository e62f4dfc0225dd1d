"""A lease of a folder: one process at a time writes to it, across machines and after crashes.

The holder renews the lease by counting up a heartbeat. Others do not compare clocks: a lease has
expired if its heartbeat did not change while they watched it for its whole duration on their own
clock. On the same machine the kernel says whether the holder lives.

A holder that was only slow may still be writing when its lease is taken over. Therefore it and its
workers check the lease before each write (`check_lease`), and a new holder first pauses for writes
that were checked just before it took over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable

from pipeline.errors import LeaseLostError, UserError
from pipeline.storage.document import DocumentError
from pipeline.storage.folder import Storage
from pipeline.storage.lease.compare_and_swap import Content, swap_file
from pipeline.storage.lease.fence import LEASE_FILE, LeaseInfo, lost_text
from pipeline.storage.lease.process_identity import has_ended, process_identity
from pipeline.storage.redact import error_line

HEARTBEATS = 6  # per duration of a lease
POLLS = 30  # per duration, by a process that watches a lease
PAUSES = 12  # per duration: pauses for the writes of a former holder
RELEASE_SECONDS = 10.0  # for a heartbeat in progress

_LOG = logging.getLogger(__name__)


class LeaseHeldError(Exception):
    """Another process holds the lease; ``holder`` names it."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class Lease:
    """A lease of ``seconds``, renewed by a thread from `acquire` to `release`.

    ``subject`` names the folder in messages. A heartbeat that cannot be written is tried again, and
    a lease is lost only once another process has it.
    """

    def __init__(self, storage: Storage, subject: str, seconds: float) -> None:
        self.subject, self.owner = subject, uuid.uuid4().hex
        self._storage, self._name = storage, f"{storage}/{LEASE_FILE}"
        self._file = swap_file(storage, LEASE_FILE)
        self._info = LeaseInfo(
            owner=self.owner,
            holder=f"process {os.getpid()} on {platform.node()}",
            process=process_identity(),
            seconds=seconds,
            heartbeat=0,
        )
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._lost: LeaseLostError | None = None
        self._on_lost: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease, once that of a former holder has expired.

        Raises LeaseHeldError if the holder lives, OSError if the storage fails, UserError if the
        lease file is not one.
        """
        while True:
            seen = self._file.read()
            current = self._parse(seen)
            pause = False
            if current is not None and not current.released and current.owner != self.owner:
                pause = self._wait_until_expired(seen, current)
            if not self._file.replace(self._info.encode(), seen):
                continue  # it has changed: look again
            if pause or not self._file.atomic:
                time.sleep(self._info.seconds / PAUSES)
                current = self._parse(self._file.read())
                if current is not None and current.owner != self.owner:
                    raise LeaseHeldError(current.holder)
            self._thread.start()
            return

    def release(self, *, delete: bool = False) -> None:
        """End the heartbeats and mark the lease as free, if it is held.

        The mark stops workers that are left. ``delete`` its file where there were none.
        """
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join(RELEASE_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            seen = self._file.read()
            current = self._parse(seen)
            if current is None or current.owner != self.owner:
                return
            if delete:
                self._storage.delete(LEASE_FILE)
            else:
                self._file.replace(current.model_copy(update={"released": True}).encode(), seen)

    def when_lost(self, call: Callable[[], object]) -> None:
        """Call a function from the thread of the heartbeats once the lease is lost."""
        with self._lock:
            self._on_lost = call
            lost = self._lost is not None
        if lost:
            call()

    @property
    def lost(self) -> LeaseLostError | None:
        """Return the error of the loss, once a heartbeat has found another holder."""
        return self._lost

    def _wait_until_expired(self, seen: Content, current: LeaseInfo) -> bool:
        """Watch the lease of another process until it is free.

        Returns whether writes of that process may still be under way. Raises LeaseHeldError if it
        lives, OSError if the lease could not be read for its duration.
        """
        ended = has_ended(current.process)
        if ended is not None:
            if ended:
                return False
            raise LeaseHeldError(current.holder)
        _LOG.warning(
            "%s was not released by %s; waiting %g s for a sign of life",
            self.subject,
            current.holder,
            current.seconds,
        )
        since = read = time.monotonic()
        while time.monotonic() - since < current.seconds:
            time.sleep(current.seconds / POLLS)
            try:
                now = self._file.read()
            except OSError:
                # The holder cannot reach the storage either, perhaps: watch it again from here.
                since = time.monotonic()
                if since - read > current.seconds:
                    raise
                continue
            read = time.monotonic()
            if now != seen:
                latest = self._parse(now)
                if latest is None or latest.released:
                    return False
                raise LeaseHeldError(latest.holder)
        return True

    def _renew_until_ended(self) -> None:
        renewed, warned = time.monotonic(), False
        while not self._ended.wait(self._info.seconds / HEARTBEATS):
            try:
                if not self._renew():
                    return
                renewed, warned = time.monotonic(), False
            except Exception as error:  # of any client; the next attempt may succeed
                late = time.monotonic() - renewed
                if late > self._info.seconds / 2 and not warned:
                    warned = True
                    _LOG.warning(
                        "the lease of %s was not renewed for %.0f s: %s; retrying",
                        self.subject,
                        late,
                        error_line(error),
                    )

    def _renew(self) -> bool:
        """Count up the heartbeat; return whether the lease is still ours."""
        seen = self._file.read()
        current = self._parse(seen)
        if current is not None and current.owner != self.owner:
            with self._lock:
                self._lost = LeaseLostError(lost_text(self.subject, current))
                call = self._on_lost
            if call is not None:
                call()
            return False
        info = self._info.model_copy(update={"heartbeat": self._info.heartbeat + 1})
        if self._file.replace(info.encode(), seen):
            self._info = info
        return True

    def _parse(self, content: Content) -> LeaseInfo | None:
        if content.data is None:
            return None
        try:
            return LeaseInfo.parse(content.data, self._name)
        except DocumentError as error:
            raise UserError(f"{error}; delete the file if no process uses {self.subject}") from None
