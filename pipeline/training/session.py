"""Where a worker's checkpoints come from and go to; here, a plain folder without Ray.

The training loop knows only `Session`. Ray Train's is in `ray_train`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import Config
from pipeline.world import World, world_from_environment

Metrics = Mapping[str, float]
Write = Callable[[Path], None]


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint: its metrics and a way to open it as a local folder."""

    metrics: Metrics
    open: Callable[[], AbstractContextManager[Path]]


class Session(Protocol):
    """What a worker asks of its surroundings."""

    world: World

    def latest(self) -> Saved | None:
        """The checkpoint to go on from, if there is one."""

    def kept(self) -> list[Saved]:
        """All checkpoints that still exist, oldest first. Every rank calls it."""

    def report(self, metrics: Metrics, name: str, write: Write) -> None:
        """Commit a checkpoint that rank 0 writes into a folder. Every rank calls it."""


SCORE = "score"


def score_name(config: Config) -> str | None:
    """The figure that ranks checkpoints; None where no set is evaluated during training."""
    return SCORE if config.data.val else None


class LocalSession:
    """This process, or the processes that torchrun started; checkpoints in a local folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.world, self._owns_group = world_from_environment(
            config.ray.gpu, config.ray.collective_timeout
        )
        self.folder = folder
        self._keep = config.train.keep_checkpoints
        self._score = score_name(config)
        folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Leave the process group, if this session made it."""
        if self._owns_group:
            import torch.distributed as dist

            dist.destroy_process_group()

    def latest(self) -> Saved | None:
        """The last complete checkpoint in the folder."""
        return next(reversed(self.kept()), None)

    def kept(self) -> list[Saved]:
        """All complete checkpoints in the folder, oldest first."""
        return [self._saved(folder) for folder in self._folders()]

    def report(self, metrics: Metrics, name: str, write: Write) -> None:
        """Write on rank 0 and rename into place, then apply the retention."""
        if self.world.is_main:
            draft = self.folder / f".{name}.part"
            shutil.rmtree(draft, ignore_errors=True)
            write(draft)
            (draft / "metrics.json").write_text(json.dumps(dict(metrics)), encoding="utf-8")
            shutil.rmtree(self.folder / name, ignore_errors=True)
            os.replace(draft, self.folder / name)
            self._prune()
        self.world.share(None)

    def _folders(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("step-*/metrics.json"))

    def _saved(self, folder: Path) -> Saved:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return Saved(metrics, lambda: contextlib.nullcontext(folder))

    def _prune(self) -> None:
        folders = self._folders()
        ranked = folders
        if self._score:
            name = self._score
            ranked = sorted(
                folders, key=lambda path: self._saved(path).metrics.get(name, float("-inf"))
            )
        for folder in set(folders) - set(ranked[-self._keep :]) - {folders[-1]}:
            shutil.rmtree(folder)


@contextlib.contextmanager
def local_session(config: Config, folder: Path) -> Iterator[LocalSession]:
    """A `LocalSession` that leaves its process group at the end."""
    session = LocalSession(config, folder)
    try:
        yield session
    finally:
        session.close()


def best_of(saved: list[Saved], score: str | None) -> Saved | None:
    """The checkpoint of highest score, the latest where none has one."""
    if score is None or not saved:
        return saved[-1] if saved else None
    scored: list[Any] = [item for item in saved if score in item.metrics]
    return max(scored, key=lambda item: item.metrics[score]) if scored else saved[-1]
