"""Progress of a training, reported by rank 0: lines on stderr and metrics in MLflow."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.data.loading.repeat_sampling import describe_repeats
from pipeline.data.loading.sample_order import SampleOrder
from pipeline.data.shards.reader import ShardSet
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.report import report_evaluation
from pipeline.pretrained import TransferReport
from pipeline.progress import Throttle, counted
from pipeline.reports.doctor.anchor_warning import anchor_warning
from pipeline.storage.redact import mask
from pipeline.tracking import Tracker, history_tag
from pipeline.training.step_schedule import StepSchedule
from pipeline.training.stop import Request
from pipeline.training.trainer.early_stopping import EarlyStopping
from pipeline.training.trainer.profiler import Profile, operator_table

PRINT_SECONDS = 5.0  # between two progress lines
MAX_KEPT_BYTES = 4 * 2**20  # of records in a checkpoint

_LOG = logging.getLogger(__name__)


class RunLog:
    """Prints progress with the remaining time and logs metrics; silent without a tracker.

    ``label`` is put before every line, such as the name of a trial where several report at once.
    """

    def __init__(self, tracker: Tracker | None, label: str = "") -> None:
        self.tracker = tracker
        self._label = f"{label}: " if label else ""
        self._began = time.monotonic()
        self._throttle = Throttle(PRINT_SECONDS)
        self._first = self._last = 0
        self._last_time = self._began
        self._schedule: StepSchedule | None = None
        self._workers = 1

    def start(
        self,
        step: int,
        schedule: StepSchedule,
        title: str,
        workers: int,
        device: str,
        precision: str,
    ) -> None:
        """Report what trains from a step on, and where; start to measure speed."""
        self._first = self._last = step
        self._began = self._last_time = time.monotonic()
        self._throttle.restart()
        self._schedule, self._workers = schedule, workers
        resumed = f", resuming after step {step}" if step else ""
        count = f"{counted(workers, 'worker')} ({device}, {precision})"
        steps = f"{schedule.total_steps} steps of {schedule.batch_size} images"
        self._print(f"{title}, {count}: {steps}{resumed}")
        if self.tracker is not None:
            where = f"after step {step} of {schedule.total_steps}"
            self.tracker.set_tag(*history_tag(f"workers start {where}: {title}, {count}"))
            self.tracker.set_tag("device", device)
            self.tracker.set_tag("precision", precision)

    def records_in_memory(self) -> list[str]:
        """Return records for the checkpoint to keep: they are neither sent nor on a disk."""
        records, size = [], 0
        for record in self.tracker.records_in_memory() if self.tracker else []:
            size += len(record)
            if size > MAX_KEPT_BYTES:
                break
            records.append(record)
        return records

    def log_again(self, records: Sequence[str]) -> None:
        """Log what a checkpoint has kept."""
        if self.tracker is not None:
            self.tracker.log_again(records)

    def check_anchors(self, shards: ShardSet, config: Config) -> None:
        """Warn if the anchors do not fit many objects, by a few samples."""
        warning = anchor_warning(shards, config) if self.tracker is not None else None
        if warning:
            self._print(f"warning: {warning}")

    def describe_sampling(self, order: SampleOrder, threshold: float) -> None:
        """Report how often images are drawn, unless it is once per epoch."""
        if self.tracker is not None and threshold:
            self._print(describe_repeats(order.weights, threshold))

    def moved(self, before: str, now: str) -> None:
        """Report that a resumed training computes elsewhere or in another precision."""
        text = f"trained so far on {before}, continues on {now}: the result depends on it"
        self._print(text)
        if self.tracker is not None:
            self.tracker.set_tag(*history_tag(text))

    def started_from(self, report: TransferReport | None) -> None:
        """Report which weights of ``model.init`` were used: a summary here, all in the run."""
        if report is not None and self.tracker is not None:
            for line in report.lines():
                self._print(line)
            self.tracker.log_text(report.encode().decode(), "init.json")

    def step(self, step: int, parts: Mapping[str, float], lr: float) -> None:
        """Log the metrics of a training step, averaged over ranks."""
        assert self._schedule is not None, "start() comes first"
        now = time.monotonic()
        images = (step - self._last) * self._schedule.batch_size
        rate = images / max(1e-9, now - self._last_time)
        self._last, self._last_time = step, now
        if self.tracker is None:
            return
        metrics = {f"train/{name}": value for name, value in parts.items()}
        metrics |= {
            "train/lr": lr,
            "train/images_per_second": rate,
            "train/epoch": self._schedule.epoch(step),
            "train/workers": float(self._workers),
        }
        self.tracker.log_metrics(metrics, step)
        if self._throttle.due() or step == self._schedule.total_steps:
            self._print(self._progress(step, parts, rate, now))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log further metrics of a step under their full names."""
        if self.tracker is not None:
            self.tracker.log_metrics(metrics, step)

    def skipped_non_finite(self, step: int, count: int) -> None:
        """Log the number of steps skipped so far, and this one in the history of the run."""
        if self.tracker is not None:
            self.tracker.log_metrics({"train/skipped_steps": float(count)}, step)
            self.tracker.set_tag(*history_tag(f"step {step} skipped: gradient not finite"))

    def checkpoint_requested(self, step: int, request: Request) -> None:
        """Print why an unscheduled checkpoint is written."""
        self._print(f"step {step}: {request.reason}; saving")

    def checkpoint_saved(self, step: int, request: Request) -> None:
        """Add an unscheduled checkpoint to the history of the run."""
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
        """Log the metrics, pictures and curves of an evaluation."""
        metrics = evaluation.result.metrics
        shown = [
            f"{name} {metrics[name]:.3f}" for name in ("ap", "ap50", "ap75") if name in metrics
        ]
        self._print(f"step {step}: {split} {', '.join(shown) or 'has no objects to detect'}")
        if self.tracker is not None:
            self.tracker.log_metrics(
                {f"{split}/{name}": value for name, value in metrics.items()}, step
            )
            try:
                report_evaluation(self.tracker, split, evaluation, shards, classes, pictures)
            except Exception as error:  # pictures must not fail a rank that others wait for
                _LOG.warning("no pictures of %s at step %d: %s", split, step, error)
        self._last_time = time.monotonic()  # do not count the evaluation as a slow step

    def selected(self, step: int, checkpoint: str, metrics: Mapping[str, float]) -> None:
        """Log the selected checkpoint: its metrics on ``data.val``, as ``best/...``, and tags."""
        if self.tracker is not None:
            best = {f"best/{name.removeprefix('val/')}": value for name, value in metrics.items()}
            self.tracker.log_metrics(best, step)
            self.tracker.set_tag("best.step", str(step))
            self.tracker.set_tag("best.checkpoint", mask(checkpoint))

    def stopped_early(self, step: int, metric: str, early_stopping: EarlyStopping) -> None:
        """Print why the training ends before its last step."""
        self._print(
            f"step {step}: {metric} has not exceeded {early_stopping.best:.3f} for "
            f"{early_stopping.evaluations_since_best} evaluations (train.patience); stopping early"
        )

    def profile(self, profiler: Profile) -> None:
        """Store a trace for a viewer (Perfetto, chrome://tracing) and a table of operators."""
        if self.tracker is None:
            return
        try:
            self.tracker.log_text(operator_table(profiler), "profile/operators.txt")
            with tempfile.TemporaryDirectory() as folder:
                trace = Path(folder) / "trace.json.gz"
                profiler.export_chrome_trace(str(trace))
                self.tracker.log_artifact(trace, "profile")
        except Exception as error:  # a trace must not fail a rank that others wait for
            _LOG.warning("no profile: %s", error)
        else:
            self._print("the profile is in the run's artifacts, under profile/")

    def _progress(self, step: int, parts: Mapping[str, float], rate: float, now: float) -> str:
        assert self._schedule is not None, "start() comes first"
        total = self._schedule.total_steps
        left = (total - step) * (now - self._began) / max(1, step - self._first)
        return (
            f"epoch {self._schedule.epoch(step):.2f}  step {step}/{total}  "
            f"loss {parts['loss']:.3f} (cls {parts['loss_cls']:.3f}, loc {parts['loss_loc']:.3f})  "
            f"{rate:.1f} images/s  {_clock(left)} left"
        )

    def _print(self, text: str) -> None:
        if self.tracker is not None:
            print(mask(f"{self._label}{text}"), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
