"""What the outside sees of a training: lines on stderr and points in MLflow, from rank 0 alone."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.data.shards.reader import ShardSet
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.report import report_evaluation
from pipeline.pretrained import TransferReport
from pipeline.tracking import Tracker, history_tag
from pipeline.training.stop import Request
from pipeline.training.trainer.early_stopping import Patience
from pipeline.training.trainer.profiler import Profile, operators

PRINT_SECONDS = 5.0

_LOG = logging.getLogger(__name__)


class Plan(Protocol):
    """The length of a training."""

    total: int
    batch: int

    def epoch(self, step: int) -> float:
        """Passes over the training set after a step."""


class RunLog:
    """Prints progress with the time left and sends figures; silent without a tracker."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker
        self._began = self._printed = time.monotonic()
        self._first = self._last = 0
        self._last_time = self._began
        self._plan: Plan | None = None
        self._workers = 1

    def start(self, step: int, plan: Plan, title: str, workers: int) -> None:
        """Begin counting speed at a step."""
        self._first = self._last = step
        self._began = self._last_time = self._printed = time.monotonic()
        self._plan, self._workers = plan, workers
        went_on = f", going on after step {step}" if step else ""
        many = f"{workers} worker{'s' if workers > 1 else ''}"
        self._print(f"{title}, {many}: {plan.total} steps of {plan.batch} images{went_on}")
        if self.tracker is not None:
            where = f"after step {step} of {plan.total}"
            self.tracker.set_tag(*history_tag(f"workers start {where}: {title}, {many}"))

    def started_from(self, report: TransferReport | None) -> None:
        """What of ``model.init`` was taken, in short here and in full in the run."""
        if report is not None and self.tracker is not None:
            for line in report.lines():
                self._print(line)
            self.tracker.log_text(json.dumps(report.as_dict(), indent=1), "init.json")

    def step(self, step: int, parts: Mapping[str, float], lr: float) -> None:
        """A training step's figures, averaged over ranks."""
        assert self._plan is not None, "start() comes first"
        now = time.monotonic()
        rate = (step - self._last) * self._plan.batch / max(1e-9, now - self._last_time)
        self._last, self._last_time = step, now
        if self.tracker is None:
            return
        figures = {f"train/{name}": value for name, value in parts.items()}
        figures |= {
            "train/lr": lr,
            "train/images_per_second": rate,
            "train/epoch": self._plan.epoch(step),
            "train/workers": float(self._workers),
        }
        self.tracker.log_metrics(figures, step)
        if now - self._printed >= PRINT_SECONDS or step == self._plan.total:
            self._printed = now
            self._print(self._line(step, parts, rate, now))

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Further figures of a step, under their full names."""
        if self.tracker is not None:
            self.tracker.log_metrics(figures, step)

    def asked(self, step: int, request: Request) -> None:
        """A checkpoint out of turn, and why."""
        self._print(f"step {step}: {request.reason}; saving")

    def saved(self, step: int, request: Request) -> None:
        """That checkpoint in the run's history."""
        if self.tracker is not None:
            self.tracker.set_tag(*history_tag(f"saved after step {step}: {request.reason}"))

    def evaluated(
        self,
        split: str,
        step: int,
        evaluation: Evaluation,
        shards: ShardSet,
        classes: Sequence[str],
        pictures: int,
    ) -> None:
        """An evaluation's figures, pictures and curves."""
        metrics = evaluation.result.metrics
        shown = [
            f"{name} {metrics[name]:.3f}" for name in ("ap", "ap50", "ap75") if name in metrics
        ]
        self._print(f"step {step}: {split} {', '.join(shown) or 'has no objects to find'}")
        if self.tracker is not None:
            self.tracker.log_metrics(
                {f"{split}/{name}": value for name, value in metrics.items()}, step
            )
            try:
                report_evaluation(self.tracker, split, evaluation, shards, classes, pictures)
            except Exception as error:  # a picture less, while other ranks wait
                _LOG.warning("no pictures of %s at step %d: %s", split, step, error)
        self._last_time = time.monotonic()  # an evaluation is no slow step

    def stopped_early(self, step: int, patience: Patience) -> None:
        """Why the training ends before its last step."""
        self._print(
            f"step {step}: val/ap is not above {patience.best:.3f} for {patience.waited} "
            "evaluations (train.patience); stopping"
        )

    def profile(self, profiler: Profile) -> None:
        """Keep a trace for a viewer (Perfetto, chrome://tracing) and a table of operators."""
        if self.tracker is None:
            return
        try:
            self.tracker.log_text(operators(profiler), "profile/operators.txt")
            with tempfile.TemporaryDirectory() as folder:
                trace = Path(folder) / "trace.json.gz"
                profiler.export_chrome_trace(str(trace))
                self.tracker.log_artifact(trace, "profile")
        except Exception as error:  # a trace less, while other ranks wait
            _LOG.warning("no profile: %s", error)
        else:
            self._print("profile: in the run's artifacts")

    def _line(self, step: int, parts: Mapping[str, float], rate: float, now: float) -> str:
        assert self._plan is not None, "start() comes first"
        left = (self._plan.total - step) * (now - self._began) / max(1, step - self._first)
        return (
            f"epoch {self._plan.epoch(step):.2f}  step {step}/{self._plan.total}  "
            f"loss {parts['loss']:.3f} (cls {parts['loss_cls']:.3f}, loc {parts['loss_loc']:.3f})  "
            f"{rate:.1f} images/s  {_clock(left)} left"
        )

    def _print(self, text: str) -> None:
        if self.tracker is not None:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
