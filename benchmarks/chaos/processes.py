"""Processes of the training, found through /proc: ranks, their loaders, and what is left behind."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path

RANK_TITLE, CONTROLLER_TITLE = "RayTrainWorker", "TrainController"


def parents() -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(path.parent.name)] = int(fields[1])
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of a process and all processes below them."""
    family, known = {pid}, parents()
    while more := {child for child, parent in known.items() if parent in family} - family:
        family |= more
    return sorted(family - {pid})


def title(pid: int) -> str:
    """Return the command line of a process, which Ray replaces by the name of the actor."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    return ""


def actors(raylets: Iterable[int], name: str) -> list[int]:
    """Return the processes of actors of a class, started by some raylets."""
    known, started = parents(), set(raylets)
    return sorted(pid for pid, parent in known.items() if parent in started and name in title(pid))


def loaders(ranks: Iterable[int]) -> list[int]:
    """Return the loader processes of some ranks, which are forked from them."""
    own = set(ranks)
    return sorted(
        pid for pid, parent in parents().items() if parent in own and RANK_TITLE in title(pid)
    )


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes that may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def limit_file_size(pids: Iterable[int], size: int = resource.RLIM_INFINITY) -> None:
    """Let writes of processes fail beyond ``size`` bytes of a file, as on a full disk."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def processes_of(folder: Path) -> dict[int, str]:
    """Return the processes, other than this one, that use a folder, with their command lines.

    They name it in their command line or environment, or have files in it open.
    """
    found, name = {}, str(folder)
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            texts = [(path / "cmdline").read_bytes(), (path / "environ").read_bytes()]
            links = [os.readlink(link) for link in (path / "fd").iterdir()]
            if any(name.encode() in text for text in texts) or any(name in x for x in links):
                found[pid] = title(pid)
    return found
