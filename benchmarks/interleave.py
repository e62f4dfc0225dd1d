"""Programs that take turns on a machine, so that whatever else it does slows all of them alike.

Each runs in a process group of its own, which stands still but for its turns of a second, and
counts its work in a file that it shares with whoever measures.
"""

import contextlib
import json
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SLOTS = 64  # processes that may count


class Turn(NamedTuple):
    """What was done, in seconds of the clock and of CPU time."""

    work: int
    clock: float
    cpu: float

    def __add__(self, other: tuple[Any, ...]) -> "Turn":
        return Turn(*(a + b for a, b in zip(self, other, strict=True)))


class Contender:
    """A program that has warmed up and waits for its turn.

    It is started with the path of its counters as last argument, prints one line of JSON when it is
    ready, and works for ever. ``said`` is that line. Raises SystemExit if it ends before.
    """

    def __init__(self, command: Sequence[str], scratch: Path, name: str) -> None:
        self.name, path = name, scratch / f"{name}.counters"
        path.write_bytes(bytes(8 * SLOTS))
        self._counters = counters(path)
        errors = scratch / f"{name}.errors"
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, str(path)],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self._errors = errors
        try:
            self.said = self._ready()
        except BaseException:
            self.end()
            raise
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> Turn:
        """Let it run for so long. CPU time is that of all its processes."""
        work, cpu = int(self._counters.sum()), cpu_seconds(self._process.pid)
        began = time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        clock = time.monotonic() - began
        after = cpu_seconds(self._process.pid)
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} ended in its turn:\n{self._errors.read_text()}")
        return Turn(int(self._counters.sum()) - work, clock, after - cpu)

    def end(self) -> None:
        """Kill all of its processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _ready(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name}:\n{self._errors.read_text()}")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def take_turns(
    contenders: Sequence[Contender], turns: int, seconds: float = 1.0
) -> dict[str, Turn]:
    """What each contender did in its turns, which all have alternately."""
    seen = {contender.name: Turn(0, 0.0, 0.0) for contender in contenders}
    for _ in range(turns):
        for contender in contenders:
            seen[contender.name] += contender.turn(seconds)
    return seen


def counters(path: Path) -> np.ndarray:
    """The counters (64,), int64, shared with all that open the same path."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of a process and all below it, with those that ended and were waited for."""
    ticks = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
