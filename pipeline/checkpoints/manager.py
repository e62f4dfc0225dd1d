"""Saves a trainer while it trains, restores it, and chooses whose weights count in the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from torch import Tensor

from pipeline.checkpoints.rng_state import restore_rng, rng_state
from pipeline.checkpoints.snapshot import Snapshot
from pipeline.checkpoints.store import (
    CheckpointStore,
    Leftover,
    Saved,
    by_score,
    score_name,
    step_name,
)
from pipeline.config import Config
from pipeline.distributed.shared_timer import SharedTimer
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed, UserError

LEAST_SECONDS = 5.0  # between a checkpoint and the next that is due by time
RETRY_SECONDS = (2.0, 8.0)  # waits before a write is tried again and again

_LOG = logging.getLogger(__name__)


class Stateful(Protocol):
    """What can be saved and restored: a trainer, as far as its checkpoints are concerned."""

    world: World
    step_count: int

    def state(self) -> dict[str, Any]:
        """All tensors and plain values that the next step depends on; none of them copied."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state`."""

    def parameters(self) -> Iterable[Tensor]:
        """Yield the trained tensors; a first optimizer step adds as much state again."""


class CheckpointManager:
    """Every rank calls every method, at the same step; rank 0 alone writes.

    `save` copies the state into memory and returns; a thread writes, commits and prunes. One
    checkpoint is under way at a time. A checkpoint that cannot be written costs a warning, the last
    one of a training costs the training.
    """

    def __init__(self, config: Config, store: CheckpointStore, trainer: Stateful) -> None:
        self.config, self.store, self.trainer, self.world = config, store, trainer, trainer.world
        self.blocked: list[float] = []  # seconds that each `save` has kept the training waiting
        minutes = config.train.checkpoint_minutes
        seconds = max(LEAST_SECONDS, 60.0 * minutes) if minutes else float("inf")
        self._timer = SharedTimer(seconds, self.world)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._lost: dict[int, str] = {}  # by step: why its checkpoint is missing
        self._snapshot = Snapshot()

    def restore(self, check: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any] | None:
        """Go on from the latest sound checkpoint; its readable half, None where there is none.

        ``check`` sees that half before and raises UserError if it does not fit.
        """
        newest = self.world.on_main(self._newest_sound)
        if newest is not None:
            check(newest.meta)
            self._take_over(newest)
        self._timer.restart(self.trainer.step_count)
        if self.world.is_main:
            parameters = list(self.trainer.parameters())
            momentum = [] if newest else parameters
            self._snapshot.reserve([self.trainer.state(), momentum])
        return newest.meta if newest else None

    def due(self, step: int) -> bool:
        """Whether ``train.checkpoint_minutes`` have passed since the last checkpoint."""
        if not self.config.train.checkpoint_minutes:
            return False
        return self._timer.due(step, lambda: self._pending is not None and not self._pending.done())

    def save(self, meta: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of the present state; waits for the one before to end."""
        began = time.monotonic()
        states = self.world.gather(rng_state(self.world.device))
        if states is not None:
            self.wait()
            state = self._snapshot.take({**self.trainer.state(), "rng": states})
            meta = {"world_size": self.world.size, **meta}
            self._pending = self._writer.submit(self._write, self.trainer.step_count, state, meta)
        self.blocked.append(time.monotonic() - began)
        self._timer.restart(self.trainer.step_count)

    def amend(self, meta: Mapping[str, Any]) -> None:
        """Add to the readable half of the present step's checkpoint, when it is written."""
        if self.world.is_main:
            step, before = self.trainer.step_count, self._pending
            self._pending = self._writer.submit(self._amend, step, meta, before)

    def wait(self) -> None:
        """Until what has been saved is written, or given up with a warning."""
        if self._pending is not None:
            self._pending.result()

    def missing(self) -> str | None:
        """Wait for the checkpoint of the present step; why there is none, None if it is there."""
        reason: str | None = self.world.share(self._missing() if self.world.is_main else None)
        return reason

    def finish(self) -> tuple[Saved, Saved]:
        """The last checkpoint and the chosen one, which is then loaded.

        Chosen is the best on ``data.val``, or the last. Raises TrainingFailed if the last one could
        not be written.
        """
        last, chosen = self.world.on_main(self._choose)
        self._take_over(chosen)
        return last, chosen

    def close(self) -> None:
        """Let the writing end."""
        self._writer.shutdown()

    def _write(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        failed = _failure(lambda: self.store.save(step, state, meta))
        if failed:
            self._give_up(step, failed)
        else:
            self._prune()

    def _amend(self, step: int, meta: Mapping[str, Any], before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # what broke the writing is told by whoever waits
        if step in self._lost:
            return
        try:
            failed: Exception | None = _failure(lambda: self.store.amend(step, meta))
        except UserError as error:
            failed = error
        if failed:
            _warn(f"{step_name(step)} stays without its evaluation: {failed}")
        else:
            self._prune()

    def _prune(self) -> None:
        try:
            self.store.prune(self.config.train.keep_checkpoints, score_name(self.config))
        except OSError as error:
            _LOG.warning("old checkpoints in %s cannot be deleted: %s", self.store.storage, error)

    def _give_up(self, step: int, error: OSError) -> None:
        self._lost[step] = str(error)
        try:  # what half of it takes may be what the next one needs
            self.store.storage.delete_folder(step_name(step))
            last = self.store.saved()[-1:]
        except OSError:
            last = []
        _LOG.warning(
            "checkpoint %s cannot be written to %s: %s; training goes on, a restart would begin "
            "%s; free space or mend the storage",
            step_name(step),
            self.store.storage,
            error,
            f"from {last[0].name}" if last else "anew",
        )

    def _missing(self) -> str | None:
        self.wait()
        step = self.trainer.step_count
        reason = self._lost.get(step, "it is gone")
        try:
            if step in [item.step for item in self.store.saved()[-1:]]:
                return None
        except OSError as error:
            reason = str(error)
        return (
            f"the last checkpoint could not be written to {self.store.storage}: {reason}; free "
            "space or mend the storage, and resume the run by its name"
        )

    def _newest_sound(self) -> Saved | None:
        saved, leftovers = self.store.survey()
        found = self.store.first_sound(reversed(saved), "cpu", _warn)
        newest = found[0] if found else None
        self._set_aside(leftovers, after=newest.step if newest else -1)
        if newest is None and (saved or any(item.problem == "damaged" for item in leftovers)):
            _warn(f"no checkpoint in {self.store.storage} is sound; training begins anew")
        return newest

    def _set_aside(self, leftovers: Iterable[Leftover], after: int = -1) -> None:
        """Name the checkpoints later than a step whose ``meta.json`` is damaged."""
        for item in leftovers:
            if item.damage and item.step > after:
                _warn(f"{item.damage}; falling back to the one before")
                self.store.set_aside(item.name)

    def _choose(self) -> tuple[Saved, Saved]:
        problem = self._missing()
        if problem is not None:
            raise TrainingFailed(problem)
        saved, leftovers = self.store.survey()
        self._set_aside(leftovers)
        found = self.store.first_sound(by_score(saved, score_name(self.config)), "cpu", _warn)
        if found is None:
            raise TrainingFailed(f"no checkpoint in {self.store.storage} is sound any more")
        return saved[-1], found[0]

    def _take_over(self, saved: Saved) -> None:
        state = self.store.load(saved.name, self.world.device)
        self.trainer.load(state)
        restore_rng(state["rng"], self.world, self.config.train.seed, saved.step)


def _failure(attempt: Callable[[], object]) -> OSError | None:
    """Why the last of three attempts failed, if it did."""
    failed = None
    for pause in (0.0, *RETRY_SECONDS):
        time.sleep(pause)
        try:
            attempt()
        except OSError as error:
            failed = error
        else:
            return None
    return failed


def _warn(text: str) -> None:
    _LOG.warning("%s", text)
