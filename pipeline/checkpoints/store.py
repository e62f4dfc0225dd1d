"""The checkpoints of a run: one folder ``step-00000042`` each, listed, chosen and pruned."""

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
    amend_meta,
    load_meta,
    load_state,
    save_checkpoint,
    verify_checkpoint,
)
from pipeline.config import Config
from pipeline.storage.folder import Storage

SCORE = "score"
_NAME, _DAMAGED = re.compile(r"step-(\d{8,})"), f"{META}.damaged"
Say = Callable[[str], None]


def score_name(config: Config) -> str | None:
    """The figure that ranks checkpoints; None where no set is evaluated during training."""
    return SCORE if config.data.val else None


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: its name and the readable half of it."""

    name: str
    meta: Mapping[str, Any] = field(repr=False)

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.meta["step"])


class Leftover(NamedTuple):
    """A folder that is no complete checkpoint, why, and when something in it last changed.

    ``damage`` says what is wrong with one whose ``meta.json`` is damaged and not yet set aside.
    """

    name: str
    problem: str
    changed: float
    damage: str = ""

    @property
    def step(self) -> int:
        """Steps done, by its name."""
        return int(self.name[len("step-") :])


class CheckpointStore:
    """All checkpoints below a run's folder or URI."""

    def __init__(self, uri: str | Path) -> None:
        self.storage = Storage(str(uri))

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step. Raises OSError, leaving none."""
        save_checkpoint(self.storage.child(step_name(step)), state, {"step": step, **meta})

    def amend(self, step: int, more: Mapping[str, Any]) -> None:
        """Add to the readable half of a step's checkpoint; raises OSError, UserError."""
        amend_meta(self.storage.child(step_name(step)), more)

    def saved(self) -> list[Saved]:
        """All complete checkpoints, oldest first. Raises UserError if one has a newer format."""
        return self.survey()[0]

    def survey(self) -> tuple[list[Saved], list[Leftover]]:
        """Complete checkpoints, oldest first, and what else lies there under such a name."""
        saved, leftovers = [], []
        changed: dict[str, float] = {}
        for file in self.storage.files():
            name = file.name.split("/")[0]
            changed[name] = max(changed.get(name, 0.0), file.changed)
        for name in self.storage.folders():
            if not _NAME.fullmatch(name):
                continue
            try:
                saved.append(Saved(name, load_meta(self.storage.child(name))))
            except DamagedCheckpoint as error:
                known = self.storage.exists(f"{name}/{_DAMAGED}")
                problem = "damaged" if known or "damaged" in str(error) else "not complete"
                damage = str(error) if self.storage.exists(f"{name}/{META}") else ""
                leftovers.append(Leftover(name, problem, changed.get(name, 0.0), damage))
        return sorted(saved, key=lambda item: item.step), leftovers

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The verified tensors of a checkpoint."""
        return load_state(self.storage.child(name), device)

    def verify(self, name: str) -> Mapping[str, Any]:
        """Read all of a checkpoint; raises DamagedCheckpoint."""
        return verify_checkpoint(self.storage.child(name))

    def first_sound(
        self, candidates: Iterable[Saved], device: torch.device | str, say: Say
    ) -> tuple[Saved, dict[str, Any]] | None:
        """The first candidate whose bytes are right, with its tensors.

        Those before it are set aside, and ``say`` hears of each.
        """
        for item in candidates:
            try:
                return item, self.load(item.name, device)
            except DamagedCheckpoint as error:
                say(f"{error}; falling back to the one before")
                self.set_aside(item.name)
        return None

    def set_aside(self, name: str) -> None:
        """Make a damaged checkpoint none: it is listed as damaged, and pruned in time."""
        self.storage.move(f"{name}/{META}", f"{name}/{_DAMAGED}")

    def prune(self, keep: int, score: str | None, *, older_than: float = 0.0) -> list[str]:
        """Delete all but the ``keep`` best (or last) checkpoints and the latest; what was deleted.

        Leftovers go too: those that came before the latest, whose writing must have ended, and
        others unchanged for ``older_than`` seconds if that is above 0.
        """
        doomed = self.doomed(keep, score, older_than=older_than)
        for name in doomed:
            self.storage.delete(f"{name}/{META}")  # first, so that half of one is none
            self.storage.delete_folder(name)
        return doomed

    def doomed(self, keep: int, score: str | None, *, older_than: float = 0.0) -> list[str]:
        """What `prune` would delete."""
        saved, leftovers = self.survey()
        kept = {item.name for item in by_score(saved, score)[:keep]} | {i.name for i in saved[-1:]}
        latest = saved[-1].step if saved else -1
        now = time.time()
        return [
            *(item.name for item in saved if item.name not in kept),
            *(
                item.name
                for item in leftovers
                if item.step < latest or 0 < older_than < now - item.changed
            ),
        ]


def by_score(saved: Sequence[Saved], score: str | None) -> list[Saved]:
    """Checkpoints by falling score, the later first among equals; without a score, latest first."""
    latest_first = list(reversed(saved))
    if score is None:
        return latest_first
    return sorted(latest_first, key=lambda item: -item.meta.get(score, float("-inf")))


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"
