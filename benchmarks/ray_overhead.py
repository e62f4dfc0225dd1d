"""Measure the overhead of Ray Train: its workers against the same loop under torchrun, in pairs.

    python -m benchmarks.ray_overhead --workers 1      # one core is left to Ray; about 10 minutes
    python -m benchmarks.ray_overhead                  # 2 CPU workers, on 2 cores all there is
    python -m benchmarks.ray_overhead --gpu --workers 8 --batch-size 256 --backbone resnet50

Both train with `train_worker` on the same generated images, with loader processes; the checkpoint
at the end is not counted. One run of each makes a pair; the order alternates, and no process of Ray
runs while torchrun is measured. The overhead is the ratio of a pair's mean step times, minus one;
its interval covers the mean of such ratios with 95 % confidence. Start-up is the time from the
command to the request for the first batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.assign import hardware
from jobs import prepare
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.training.run_log import RunLog
from pipeline.training.run_record import RunRecord
from pipeline.training.session import LocalSession, launched_world
from pipeline.training.step_schedule import StepSchedule
from pipeline.training.worker import train_worker

RESULTS = Path(__file__).parent / "results" / "ray_overhead.json"
WARM_UP_STEPS, LOG_STEPS = 10, 5  # before the measurement; between two readings of the clock
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 9: 2.262, 11: 2.201, 15: 2.131}
ARMS = ("ray", "torchrun")


class Clock(RunLog):
    """Records when training begins and when every fifth step ends."""

    def __init__(self) -> None:
        super().__init__(None)
        self.began, self.marks = 0.0, [(0, 0.0, 0.0)]

    def start(self, step: int, schedule: StepSchedule, title: str, workers: int) -> None:
        """Record the time."""
        super().start(step, schedule, title, workers)
        self.began, self.marks = time.time(), []

    def step(self, step: int, parts: Mapping[str, float], lr: float) -> None:
        """Record the time, and this process's CPU time without its loader processes."""
        self.marks.append((step, time.perf_counter(), time.process_time()))

    def timing(self) -> dict[str, Any]:
        """Return milliseconds per step after the warm-up, and when the training began."""
        (first, wall, cpu), (last, wall_end, cpu_end) = (
            self.marks[WARM_UP_STEPS // LOG_STEPS - 1],
            self.marks[-1],
        )
        per_step = 1e3 / (last - first)
        return {
            "began": self.began,
            "step_ms": (wall_end - wall) * per_step,
            "process_cpu_ms": (cpu_end - cpu) * per_step,
        }


def torchrun_rank(config: Config, folder: Path) -> None:
    """Run one rank, as started by torchrun."""
    clock = Clock()
    with launched_world(config.ray) as world:
        train_worker(config, LocalSession(world, CheckpointStore(folder)), clock)
        if world.is_main:
            (folder / "figures.json").write_text(json.dumps(clock.timing()))


def ray_worker(content: Mapping[str, Any]) -> None:
    """Run one rank, as started by Ray Train."""
    from pipeline.training.ray_backend.launch import RaySession, WorkerSettings

    settings = WorkerSettings.from_content(content, "worker settings")
    clock, session = Clock(), RaySession(CheckpointStore(settings.storage))
    train_worker(settings.config, session, clock)
    if session.world.is_main:
        Path(settings.storage, "figures.json").write_text(json.dumps(clock.timing()))


def ray_driver(config: Config, folder: Path) -> None:
    """Start a cluster on this machine and run Ray Train in it, as `fit` does."""
    from pipeline.distributed.ray_cluster import ray_cluster
    from pipeline.training.ray_backend.launch import WorkerSettings, build_trainer

    settings = WorkerSettings(
        config=config, storage=str(folder), run="ray", tracking_uri="", run_id=""
    )
    with ray_cluster(config.ray) as owned:
        record = RunRecord(str(folder), "ray")
        build_trainer(config, record, ray_worker, settings, owned=owned).fit()


def run_arm(arm: str, config: Config, folder: Path) -> dict[str, float]:
    """Run one training in its own processes; return its step times and seconds to start up."""
    folder.mkdir()
    (folder / "config.json").write_text(config.model_dump_json())
    this = ["-m", "benchmarks.ray_overhead", "--arm", arm, "--folder", str(folder)]
    command = [sys.executable, *this]
    if arm == "torchrun":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [sys.executable, *start, str(config.ray.workers), *this]
    began = time.time()  # the ranks read the same clock
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{(folder / 'log').read_text()[-3000:]}")
    figures = json.loads((folder / "figures.json").read_text())
    figures["startup_s"] = figures.pop("began") - began
    return dict(figures)


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean with its 95 % confidence interval."""
    mean, degrees = statistics.mean(values), len(values) - 1
    t = T95[max(d for d in T95 if d <= degrees)]  # of fewer degrees: slightly too wide
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the overhead in per cent of torchrun's step, and medians of all measurements."""
    ratios = [pair["ray"]["step_ms"] / pair["torchrun"]["step_ms"] - 1 for pair in pairs]
    per_cent = {name: round(100 * value, 2) for name, value in interval(ratios).items()}
    medians = {
        arm: {
            name: round(statistics.median(pair[arm][name] for pair in pairs), 1)
            for name in pairs[0][arm]
        }
        for arm in ARMS
    }
    return {"overhead_per_cent": per_cent, "medians": medians}


def main() -> None:
    """Run the pairs and write the results; or run one rank or driver of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8, help="at least 3")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--backbone", default="slim")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs < 3:
        parser.error("--pairs: an interval needs at least 3")
    if options.arm:
        config = Config.from_dict(json.loads((options.folder / "config.json").read_text()))
        if options.arm == "torchrun":
            config = config.replace({"ray.enabled": False})
        {"ray": ray_driver, "torchrun": torchrun_rank}[options.arm](config, options.folder)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # as both set it by default
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name:
        folder = Path(name)
        images = ["--source", "shapes", "--split", "train", "--size", "320", "--count", "256"]
        prepare.main([*images, "--out", str(folder / "images")])
        config = Config.from_dict(
            {
                "data": {"train": str(folder / "images"), "crop": 0.3, "photometric": 0.5},
                "model": {"backbone": options.backbone, "image_size": 320},
                "train": {
                    "epochs": options.steps * options.batch_size / 256,
                    "batch_size": options.batch_size,
                    "precision": "auto" if options.gpu else "fp32",
                    "log_every": LOG_STEPS,
                    "checkpoint_every": options.steps,
                },
                "ray": {"workers": options.workers, "gpu": options.gpu, "address": "local"},
            }
        )
        pairs: list[dict[str, dict[str, float]]] = []
        for number in range(options.pairs):
            order = ARMS if number % 2 else ARMS[::-1]
            pair = {arm: run_arm(arm, config, folder / f"{number}-{arm}") for arm in order}
            print(json.dumps(pair), flush=True)
            pairs.append(pair)
    case = {
        name: getattr(options, name)
        for name in ("steps", "workers", "batch_size", "backbone", "gpu")
    }
    result = {
        "case": case,
        "hardware": hardware("cuda" if options.gpu else "cpu"),
        **summary(pairs),
        "load_average": os.getloadavg()[0],
        "runs": pairs,
    }
    others = json.loads(options.out.read_text()) if options.out.exists() else []
    results = [*(other for other in others if other["case"] != case), result]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("overhead_per_cent", "medians")}, indent=2))


if __name__ == "__main__":
    main()
