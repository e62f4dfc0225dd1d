"""Run programs in alternating turns: other load on the machine then slows all of them equally.

Each runs in its own process group, which is paused except for its turns of a second, and counts its
work in a file that it shares with the measuring process.
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

MAX_COUNTERS = 64  # counting processes per program


class Turn(NamedTuple):
    """The work done in some turns, with their wall-clock and CPU time in seconds."""

    work: int
    clock: float
    cpu: float

    def __add__(self, other: tuple[Any, ...]) -> "Turn":
        return Turn(*(a + b for a, b in zip(self, other, strict=True)))


class Contender:
    """A program that has warmed up and is paused until its turn.

    It is started with the path of its counters as its last argument, prints one line of JSON when
    it is ready, and works until it is killed. ``ready`` is that line. Raises SystemExit if it ends
    before it is ready.
    """

    def __init__(self, command: Sequence[str], scratch: Path, name: str) -> None:
        self.name, path = name, scratch / f"{name}.counters"
        path.write_bytes(bytes(8 * MAX_COUNTERS))
        self._counters = open_counters(path)
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
            self.ready = self._read_ready_line()
        except BaseException:
            self.end()
            raise
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> Turn:
        """Run it for some seconds; return its work, with the CPU time of all its processes."""
        work, cpu = int(self._counters.sum()), cpu_seconds(self._process.pid)
        began = time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        clock = time.monotonic() - began
        after = cpu_seconds(self._process.pid)
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} ended during its turn:\n{self._errors.read_text()}")
        return Turn(int(self._counters.sum()) - work, clock, after - cpu)

    def end(self) -> None:
        """Kill all its processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _read_ready_line(self) -> Any:
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
    """Run all contenders in alternating turns; return the total of each."""
    totals = {contender.name: Turn(0, 0.0, 0.0) for contender in contenders}
    for _ in range(turns):
        for contender in contenders:
            totals[contender.name] += contender.turn(seconds)
    return totals


def open_counters(path: Path) -> np.ndarray:
    """Return the counters (64,), int64, shared by all processes that open the same path."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)


def process_tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its descendants, including those already reaped."""
    ticks = 0
    for pid in process_tree(root):
        with contextlib.suppress(OSError):  # it may just have ended
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
