"""The learning curves that `benchmarks.sweep` replays: a grid of trainings on generated images."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from jobs import prepare
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.evaluation.model_evaluation import evaluate_model
from pipeline.metrics.bootstrap import bootstrap
from pipeline.registry import load_detector
from pipeline.storage.document import Document
from pipeline.sweep.space import SearchSpace
from pipeline.training.run_log import RunLog
from pipeline.training.session import LocalSession
from pipeline.training.worker import train_worker
from pipeline.trials.trial_records import Params

SPACE = {
    "assign.name": {"grid": ["max_iou", "mutual_guidance", "mutual_guidance_soft", "task_aligned"]},
    "train.lr": {"grid": [0.003, 0.01, 0.03, 0.1]},
}


class Curve(Document):
    """A point of the grid, and epoch and AP of each evaluation."""

    params: Params
    scores: list[tuple[float, float]]


class Recording(Document):
    """All curves, and the standard error of the AP of the best point over images."""

    seed: int
    epochs: int
    steps_per_epoch: float
    curves: list[Curve]
    standard_error: float
    cpu_seconds: float
    torch: str


class _Recorder(LocalSession):
    """Keeps the scores that a training reports."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__(World(), store)
        self.scores: list[tuple[float, float]] = []

    def report(self, metrics: Mapping[str, float]) -> None:
        self.scores.append((metrics["epoch"], round(metrics["val/ap"], 5)))


def recipe(seed: int, epochs: int, data: Mapping[str, str]) -> Config:
    """Return the configuration of all points."""
    return Config.from_dict(
        {
            "data": {**data, "loader_workers": 0},
            "model": {"backbone": "slim", "neck": "retinanet", "image_size": 64},
            "train": {
                "epochs": epochs,
                "batch_size": 4,
                "precision": "fp32",
                "warmup_steps": 60,
                "ema_decay": 0.95,
                "seed": seed,
            },
            "evaluate": {"every": 1, "pictures": 0},
            "ray": {"enabled": False, "threads_per_worker": 1},
            "sweep": {"space": SPACE, "searcher": "grid"},
        }
    )


def record(seed: int, epochs: int = 12, images: int = 240, limit: int | None = None) -> Recording:
    """Train all points, or the first ``limit``, on one thread, each to its end."""
    began = time.process_time()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        data = {}
        for split, count in (("train", images), ("val", max(1, images * 2 // 3))):
            data[split] = f"{folder}/{split}"
            options = ["--size", "64", "--count", str(count), "--seed", str(2 * seed + len(data))]
            prepare.main(["--source", "shapes", "--split", split, *options, "--out", data[split]])
        config = recipe(seed, epochs, data)
        curves, checkpoints = [], []
        for params in list(SearchSpace(config).combinations())[:limit]:
            home = f"{folder}/{len(curves)}"
            session = _Recorder(CheckpointStore(home))
            ended = train_worker(config.replace(params), session, RunLog(None))
            curves.append(Curve(params=params, scores=session.scores))
            checkpoints.append(str(Path(home) / ended.checkpoint))
            best = max(score for _, score in session.scores)
            print(f"{params}: AP {best:.4f}", file=sys.stderr, flush=True)
        chosen = int(np.argmax([max(score for _, score in curve.scores) for curve in curves]))
        found = evaluate_model(load_detector(checkpoints[chosen]), data["val"])
        assert found is not None, "this process is rank 0"
        resampled = bootstrap(found.evaluation.table, len(found.classes))
        means = np.nanmean(resampled.samples, axis=1)
    return Recording(
        seed=seed,
        epochs=epochs,
        steps_per_epoch=images / config.train.batch_size,
        curves=curves,
        standard_error=round(float(means.std(ddof=1)), 5),
        cpu_seconds=round(time.process_time() - began),
        torch=torch.__version__,
    )
