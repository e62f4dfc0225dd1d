"""The checkpoints of a run: one folder ``step-00000042`` each, listed, ranked and pruned."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.checkpoints.format import (
    META,
    DamagedCheckpoint,
    add_evaluation,
    load_meta,
    load_state,
    save_checkpoint,
    verify_checkpoint,
)
from pipeline.checkpoints.meta import CheckpointMeta, EarlyStoppingState
from pipeline.storage.folder import Storage

_NAME, _DAMAGED = re.compile(r"step-(\d{8,})"), f"{META}.damaged"
Warn = Callable[[str], None]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its name and its ``meta.json``."""

    name: str
    meta: CheckpointMeta = field(repr=False)

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return self.meta.step


class IncompleteCheckpoint(NamedTuple):
    """A folder named like a checkpoint that is not a complete one.

    ``changed`` is when a file in it last changed, in seconds since 1970. ``damage`` says what is
    wrong if ``meta.json`` is damaged and the checkpoint is not quarantined yet.
    """

    name: str
    problem: str
    changed: float
    damage: str = ""

    @property
    def step(self) -> int:
        """Return the number of steps in its name."""
        return int(self.name[len("step-") :])


class CheckpointStore:
    """All checkpoints in the folder or URI of a run.

    ``check_lease`` is called before each change and raises LeaseLostError once the run belongs to
    another driver.
    """

    def __init__(self, uri: str | Path, check_lease: Callable[[], None] = lambda: None) -> None:
        self.storage, self._check_lease = Storage(str(uri)), check_lease

    def save(self, state: Mapping[str, Any], meta: CheckpointMeta) -> None:
        """Write the checkpoint of ``meta.step``. Raises OSError, leaving none."""
        folder = self.storage.child(step_name(meta.step))
        save_checkpoint(folder, state, meta, self._check_lease)

    def discard(self, step: int) -> None:
        """Delete what an attempt to write a checkpoint has left. Raises OSError."""
        self._check_lease()
        self.storage.delete_folder(step_name(step))

    def add_evaluation(
        self,
        step: int,
        metrics: Mapping[str, float],
        early_stopping: EarlyStoppingState,
        temperature: float | None = None,
        records: Sequence[str] = (),
    ) -> None:
        """Add the results of an evaluation to a step's checkpoint. Raises OSError, UserError."""
        self._check_lease()
        folder = self.storage.child(step_name(step))
        add_evaluation(folder, metrics, early_stopping, temperature, records)

    def saved(self) -> list[SavedCheckpoint]:
        """List all complete checkpoints, oldest first. Raises UserError on a newer format."""
        return self.survey()[0]

    def survey(self) -> tuple[list[SavedCheckpoint], list[IncompleteCheckpoint]]:
        """List complete checkpoints, oldest first, and incomplete ones."""
        saved, incomplete = [], []
        changed: dict[str, float] = {}
        for file in self.storage.files():
            name = file.name.split("/")[0]
            changed[name] = max(changed.get(name, 0.0), file.modified)
        for name in self.storage.folders():
            if not _NAME.fullmatch(name):
                continue
            try:
                saved.append(SavedCheckpoint(name, load_meta(self.storage.child(name))))
            except DamagedCheckpoint as error:
                quarantined = self.storage.exists(f"{name}/{_DAMAGED}")
                damaged = quarantined or "damaged" in str(error)
                problem = "damaged" if damaged else "not complete"
                damage = str(error) if self.storage.exists(f"{name}/{META}") else ""
                incomplete.append(
                    IncompleteCheckpoint(name, problem, changed.get(name, 0.0), damage)
                )
        return sorted(saved, key=lambda item: item.step), incomplete

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read the verified tensors of a checkpoint."""
        return load_state(self.storage.child(name), device)

    def verify(self, name: str) -> CheckpointMeta:
        """Read all of a checkpoint. Raises DamagedCheckpoint."""
        return verify_checkpoint(self.storage.child(name))

    def first_intact(
        self, candidates: Iterable[SavedCheckpoint], device: torch.device | str, warn: Warn
    ) -> tuple[SavedCheckpoint, dict[str, Any]] | None:
        """Return the first candidate whose checksums match, with its tensors.

        Damaged ones before it are quarantined, with a warning each.
        """
        for item in candidates:
            try:
                return item, self.load(item.name, device)
            except DamagedCheckpoint as error:
                warn(f"{error}; falling back to the one before")
                self.quarantine(item.name)
        return None

    def quarantine(self, name: str) -> None:
        """Rename ``meta.json`` of a damaged checkpoint: it stays listed as damaged until pruned."""
        self._check_lease()
        self.storage.move(f"{name}/{META}", f"{name}/{_DAMAGED}")

    def prune(self, keep: int, *, older_than: float = 0.0) -> list[str]:
        """Delete what `prunable` lists and return those names."""
        names = self.prunable(keep, older_than=older_than)
        for name in names:
            self._check_lease()
            self.storage.delete(f"{name}/{META}")  # first: an interrupted deletion leaves none
            self.storage.delete_folder(name)
        return names

    def prunable(self, keep: int, *, older_than: float = 0.0) -> list[str]:
        """List all checkpoints except the ``keep`` best and the latest.

        Incomplete ones are included if they precede the latest, since their writing has ended, or
        if they have not changed for ``older_than`` seconds (0: no limit).
        """
        saved, incomplete = self.survey()
        kept = {item.name for item in by_score(saved)[:keep]} | {item.name for item in saved[-1:]}
        latest = saved[-1].step if saved else -1
        now = time.time()
        return [
            *(item.name for item in saved if item.name not in kept),
            *(
                item.name
                for item in incomplete
                if item.step < latest or 0 < older_than < now - item.changed
            ),
        ]


def by_score(saved: Sequence[SavedCheckpoint]) -> list[SavedCheckpoint]:
    """Sort checkpoints by falling score, the later first among equals.

    Without ``data.val`` none has a score, so the latest comes first.
    """
    latest_first = list(reversed(saved))
    return sorted(latest_first, key=lambda item: -item.meta.score)


def step_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"
