"""The training under test: its command, run again until it succeeds, and what it has produced."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.chaos import processes
from benchmarks.chaos.services import BUCKET, Objects

CHECKPOINT_STEPS = 2
IMAGES, BATCH = 40, 4
RESTART_SECONDS = 2.0  # before the command is run again
# Exit codes of `jobs.train` after which a user, or a RayJob, runs the same command again.
# -15: SIGTERM before the driver handles it.
KILLED, TERMINATED, STOPPED, INTERRUPTED, FAILED, REJECTED = -9, -15, 143, 130, 1, 2


class Attempt(NamedTuple):
    """One run of the command: its exit code and its last line on stderr."""

    code: int
    seconds: float
    line: str


def recipe(services: Mapping[str, str], name: str, steps: int, registered: bool) -> dict[str, Any]:
    """Return the configuration; ``services`` are addresses of ``s3``, ``mlflow`` and ``ray``."""
    options = f"endpoint_override={services['s3']}&scheme=http&region=us-east-1"
    tree: dict[str, Any] = {
        "data": {split: f"s3://{BUCKET}/data/{split}" for split in ("train", "val", "test")},
        "model": {"backbone": "slim", "image_size": 64},
        "train": {
            "epochs": steps * BATCH / IMAGES,
            "batch_size": BATCH,
            "log_every": 1,
            "warmup_steps": 2,
            "checkpoint_steps": CHECKPOINT_STEPS,
            "checkpoint_every": 10**6,
        },
        "evaluate": {"every": 4, "pictures": 2, "batch_size": 4},
        "tracking": {"uri": services["mlflow"], "experiment": name},
        "ray": {
            "address": services["ray"],
            "workers": 2,
            "storage": f"s3://{BUCKET}/runs?{options}",
            "max_failures": 10**6,
            "collective_timeout": 60,
            "wait_for_nodes": 5,
        },
    }
    if registered:
        tree["registry"] = {"name": name, "min_ap": None}
    return tree


class Training:
    """A training by its name, run by a thread until it succeeds or `end` is called."""

    def __init__(
        self, folder: Path, tree: Mapping[str, Any], objects: Objects, environment: dict[str, str]
    ) -> None:
        self.name: str = tree["tracking"]["experiment"]
        self._folder, self._objects, self._environment = folder, objects, environment
        self.recipe = folder / f"{self.name}.yaml"
        self.recipe.write_text(yaml.safe_dump(dict(tree)))
        self.attempts: list[Attempt] = []
        self.result: dict[str, Any] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.rerun = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, report: Callable[[str], None]) -> None:
        """Start the command in a thread; ``report`` gets a line for every exit."""
        self._report = report
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the end; return whether the training has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def command(self, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run the command once."""
        words = ["-m", "jobs.train", "--json", "--config", str(self.recipe), "--run", self.name]
        with log.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | environment,
                start_new_session=True,
            )

    def _run(self) -> None:
        while self.result is None and self.rerun:
            log = self._folder / f"{self.name}-{len(self.attempts):02d}.log"
            began = time.monotonic()
            self.driver = self.command(self._environment, log)
            output = self.driver.communicate()[0]
            code = self.driver.returncode
            attempt = Attempt(code, round(time.monotonic() - began, 1), last_line(log))
            self.attempts.append(attempt)
            self._report(
                f"the driver ended with code {code} after {attempt.seconds:.0f} s: {attempt.line}"
            )
            if code == 0:
                self.result = json.loads(output.splitlines()[-1])
            else:
                time.sleep(RESTART_SECONDS)

    def end(self) -> None:
        """Kill the driver and do not run it again."""
        self.rerun = False
        driver = self.driver
        if driver is not None and driver.poll() is None:
            processes.send([driver.pid], signal.SIGKILL)
        self._thread.join(30)

    def step(self) -> int:
        """Return the step of the latest complete checkpoint."""
        names = self._objects.sizes(f"runs/{self.name}/")
        found = (re.fullmatch(r"step-(\d+)/meta.json", name) for name in names)
        return max((int(match[1]) for match in found if match), default=0)


def last_line(log: Path) -> str:
    """Return the last line of a log that an error of the job begins, or its last line."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    starts = ("error:", "failed:", "stopped:", "interrupted")
    errors = [line for line in lines if line.startswith(starts)]
    return (errors or lines or [""])[-1][:300]


def sync(environments: Mapping[str, dict[str, str]], uri: str, folder: Path) -> dict[str, int]:
    """Run `jobs.tracking sync` on every machine with a spool, as docs/tracking.md says.

    Returns the exit code by machine.
    """
    codes = {}
    command = [sys.executable, "-m", "jobs.tracking", "sync", "--tracking.uri", uri]
    for name, environment in environments.items():
        spool = Path(environment["XDG_CACHE_HOME"]) / "guidance-train" / "spool"
        if any(path.is_file() for path in spool.rglob("*")):
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | environment,
                capture_output=True,
                timeout=300,
                check=False,
            )
            codes[name] = done.returncode
    return codes
