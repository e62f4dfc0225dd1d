"""Saves a training while it runs, restores it, and selects the checkpoint to keep at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from pipeline.checkpoints.broadcast import State, read_on_main
from pipeline.checkpoints.meta import CheckpointMeta, EarlyStoppingState
from pipeline.checkpoints.rng_state import restore_rng, rng_state
from pipeline.checkpoints.snapshot import Snapshot
from pipeline.checkpoints.store import (
    CheckpointStore,
    IncompleteCheckpoint,
    SavedCheckpoint,
    by_score,
    step_name,
)
from pipeline.config import Config
from pipeline.distributed.shared_timer import SharedTimer
from pipeline.distributed.world import World
from pipeline.errors import LeaseLostError, OutageError, TrainingFailed, UserError

MIN_INTERVAL_SECONDS = 5.0  # between a checkpoint and the next one that is due by time
RETRY_SECONDS = (2.0, 8.0)  # pauses before the second and third attempt to write

_LOG = logging.getLogger(__name__)


class Stateful(Protocol):
    """An object that can be saved and restored, such as a trainer."""

    world: World
    step_count: int

    def state(self) -> dict[str, Any]:
        """Return all tensors and plain values that the next step depends on, without copying."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state`."""

    def first_step_state(self) -> Iterable[Tensor]:
        """Yield tensors like those that the first optimizer step adds to the state."""


class CheckpointManager:
    """Every rank calls every method at the same step; only rank 0 reads and writes the storage.

    `save` copies the state into memory and returns; a thread writes, commits and prunes. One
    checkpoint is written at a time. A checkpoint that cannot be written causes a warning; the last
    one of a training fails the training. Once the run belongs to another driver, nothing is written
    and the next `save` or `finish` fails.
    """

    def __init__(self, config: Config, store: CheckpointStore, trainer: Stateful) -> None:
        self.config, self.store, self.trainer, self.world = config, store, trainer, trainer.world
        self.blocked_seconds: list[float] = []  # how long each `save` has blocked the training
        minutes = config.train.checkpoint_minutes
        seconds = max(MIN_INTERVAL_SECONDS, 60.0 * minutes) if minutes else float("inf")
        self._timer = SharedTimer(seconds, self.world)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._failed: dict[int, Exception] = {}  # by step: why its checkpoint is missing
        self._lost: LeaseLostError | None = None
        self._snapshot = Snapshot()

    def restore(self, check: Callable[[CheckpointMeta], None]) -> CheckpointMeta | None:
        """Load the latest intact checkpoint and return its meta, or None where there is none.

        ``check`` is called with the meta first and raises UserError if it does not fit.
        """
        newest, state = read_on_main(self._newest_intact, self.world)
        if newest is not None and state is not None:
            check(newest.meta)
            self._load(state, newest.step)
        self._timer.restart(self.trainer.step_count)
        if self.world.is_main:
            added = [] if newest else list(self.trainer.first_step_state())
            self._snapshot.reserve([self.trainer.state(), added])
        return newest.meta if newest else None

    def due(self, step: int) -> bool:
        """Return whether ``train.checkpoint_minutes`` have passed since the last checkpoint."""
        if not self.config.train.checkpoint_minutes:
            return False
        return self._timer.due(step, lambda: self._pending is not None and not self._pending.done())

    def save(self, meta: CheckpointMeta) -> None:
        """Start writing a checkpoint of the current state, once the previous one is written.

        Raises LeaseLostError, on every rank, if the previous one found the run taken over.
        """
        began = time.monotonic()
        states = self.world.gather(rng_state(self.world.device))
        if states is not None:
            self.wait()
        if lost := self.world.broadcast(str(self._lost) if self._lost else None):
            raise LeaseLostError(lost)
        if states is not None:
            state = self._snapshot.take({**self.trainer.state(), "rng": states})
            self._pending = self._writer.submit(self._write, state, meta)
        self.blocked_seconds.append(time.monotonic() - began)
        self._timer.restart(self.trainer.step_count)

    def add_evaluation(
        self,
        metrics: Mapping[str, float],
        early_stopping: EarlyStoppingState,
        temperature: float | None = None,
        records: Sequence[str] = (),
    ) -> None:
        """Add an evaluation, and records of the run, to the current step's written checkpoint."""
        if self.world.is_main:
            step, previous = self.trainer.step_count, self._pending
            add = partial(
                self.store.add_evaluation, step, metrics, early_stopping, temperature, records
            )
            self._pending = self._writer.submit(self._add_evaluation, step, add, previous)

    def wait(self) -> None:
        """Wait until what has been saved is written, or has failed with a warning."""
        if self._pending is not None:
            self._pending.result()

    def missing(self) -> str | None:
        """Wait for the current step's checkpoint; return why it is missing, or None."""
        problem = self._missing() if self.world.is_main else None
        reason: str | None = self.world.broadcast(str(problem) if problem else None)
        return reason

    def finish(self) -> tuple[SavedCheckpoint, SavedCheckpoint]:
        """Return the last checkpoint and the selected one, and load the selected one.

        The best on ``data.val`` is selected, or else the last. Raises TrainingFailed if the last
        one could not be written, and OutageError if that was an outage: a restart may write it.
        """
        (last, selected), state = read_on_main(self._select, self.world)
        assert state is not None, "or `_select` has raised"
        self._load(state, selected.step)
        return last, selected

    def close(self) -> None:
        """Finish pending writes and stop the thread."""
        self._writer.shutdown()

    def _write(self, state: Mapping[str, Any], meta: CheckpointMeta) -> None:
        try:
            error = _with_retries(lambda: self.store.save(state, meta))
            if error:
                self._give_up(meta.step, error)
            else:
                self._prune()
        except LeaseLostError as lost:
            self._lost = lost
            self._failed.setdefault(meta.step, lost)

    def _add_evaluation(
        self, step: int, add: Callable[[], None], previous: Future[None] | None
    ) -> None:
        if previous is not None:
            previous.result()  # raises what broke the writing, for `wait` to raise
        if step in self._failed:
            return
        try:
            error: Exception | None = _with_retries(add)
        except UserError as mistake:
            error = mistake
        except LeaseLostError as lost:
            self._lost = lost
            return
        if error:
            _warn(f"the evaluation could not be added to checkpoint {step_name(step)}: {error}")
        else:
            self._prune()

    def _prune(self) -> None:
        try:
            self.store.prune(self.config.train.keep_checkpoints)
        except LeaseLostError as lost:
            self._lost = lost
        except OSError as error:
            _LOG.warning("cannot delete old checkpoints in %s: %s", self.store.storage, error)

    def _give_up(self, step: int, error: OSError) -> None:
        self._failed[step] = error
        try:  # the space of the partial checkpoint may be what the next one needs
            self.store.discard(step)
            last = self.store.saved()[-1:]
        except OSError:
            last = []
        _LOG.warning(
            "checkpoint %s could not be written to %s: %s; training continues, a restart would "
            "begin %s; free space or repair the storage",
            step_name(step),
            self.store.storage,
            error,
            f"from {last[0].name}" if last else "from scratch",
        )

    def _missing(self) -> OutageError | TrainingFailed | None:
        """Return the error about a missing checkpoint of the current step; an outage may pass."""
        self.wait()
        step = self.trainer.step_count
        reason: object = self._failed.get(step, "it has disappeared")
        try:
            if step in [item.step for item in self.store.saved()[-1:]]:
                return None
        except OSError as error:
            reason = error
        kind = OutageError if isinstance(reason, OutageError) else TrainingFailed
        return kind(
            f"the last checkpoint could not be written to {self.store.storage}: {reason}; free "
            "space or repair the storage, then resume the run by its name"
        )

    def _newest_intact(self) -> tuple[SavedCheckpoint | None, State | None]:
        saved, incomplete = self.store.survey()
        newest, state = self.store.first_intact(reversed(saved), "cpu", _warn) or (None, None)
        self._quarantine(incomplete, after=newest.step if newest else -1)
        if newest is None and (saved or any(item.problem == "damaged" for item in incomplete)):
            _warn(f"no intact checkpoint in {self.store.storage}; training restarts from scratch")
        return newest, state

    def _quarantine(self, incomplete: Iterable[IncompleteCheckpoint], after: int = -1) -> None:
        """Warn of and quarantine checkpoints later than a step whose ``meta.json`` is damaged."""
        for item in incomplete:
            if item.damage and item.step > after:
                _warn(f"{item.damage}; falling back to the one before")
                self.store.quarantine(item.name)

    def _select(self) -> tuple[tuple[SavedCheckpoint, SavedCheckpoint], State]:
        problem = self._missing()
        if self._lost is not None:
            raise self._lost
        if problem is not None:
            raise problem
        saved, incomplete = self.store.survey()
        self._quarantine(incomplete)
        found = self.store.first_intact(by_score(saved), "cpu", _warn)
        if found is None:
            raise TrainingFailed(f"no intact checkpoint is left in {self.store.storage}")
        selected, state = found
        return (saved[-1], selected), state

    def _load(self, state: State, step: int) -> None:
        self.trainer.load(state)
        restore_rng(state["rng"], self.world, self.config.train.seed, step)


def _with_retries(write: Callable[[], object]) -> OSError | None:
    """Call ``write`` up to three times; return the last error if all attempts failed."""
    failed = None
    for pause in (0.0, *RETRY_SECONDS):
        time.sleep(pause)
        try:
            write()
        except OSError as error:
            failed = error
        else:
            return None
    return failed


def _warn(text: str) -> None:
    _LOG.warning("%s", text)
