"""Identify a process across machines and containers, to see whether it has ended."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_PROC = Path("/proc")


def process_identity() -> str:
    """Return a text that identifies this process; empty where the system does not give enough.

    The first part is shared by the processes that see each other's ids: boot, host name and
    namespace of process ids. Containers may have equal host names and ids. The second part is the
    id and the start time, since ids are reused.
    """
    pid = os.getpid()
    started = _start_time(pid)
    scope = _scope()
    return f"{scope} {pid} {started}" if scope and started else ""


def has_ended(identity: str) -> bool | None:
    """Return whether a process has ended; None if that is not visible from here."""
    scope, _, process = identity.partition(" ")
    if not scope or scope != _scope():
        return None
    pid, _, started = process.partition(" ")
    return _start_time(int(pid)) != started


def _scope() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""
    return f"{boot}/{platform.node()}/{namespace}"


def _start_time(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty if it has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name before it may contain anything
    state, started = fields[0], fields[19]
    return "" if state in "ZXx" else started  # a zombie only waits for its parent
