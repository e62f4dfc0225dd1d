"""The record of a named run beside its checkpoints: what makes a name a resume key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config
from pipeline.errors import TrainingFailed, UserError
from pipeline.storage.cache_dir import user_cache
from pipeline.storage.folder import Storage, join
from pipeline.storage.lock import LockHeldError, ProcessLock
from pipeline.storage.redact import mask

Resume = Literal["auto", "never", "must"]
Status = Literal["running", "finished", "failed", "stopped"]

# What a resumed training may change: how fast and where it runs, and what is looked at, but not
# what is learned. Everything else must stay, or the run would be neither the old one nor a new one.
MAY_CHANGE = (
    *("data.test", "data.loader_workers", "data.prefetch", "data.cache", "data.cache_gib"),
    *("data.retries", "data.max_bad_fraction"),
    *("train.micro_batch", "train.checkpoint_every", "train.checkpoint_steps"),
    *("train.checkpoint_minutes", "train.keep_checkpoints", "train.log_every"),
    *("train.patience", "train.min_improvement", "train.profile_steps", "train.compile"),
    *("evaluate", "sweep", "tracking", "registry", "ray"),
)
_RECORD, _NOTE, _LOCK = "run.json", "failure.json", "driver.lock"


class RunRecord:
    """``run.json`` in the run's folder of the storage: its MLflow run, status and configuration."""

    def __init__(self, storage: str, name: str) -> None:
        self.name, self.storage = name, storage
        self.uri = join(storage, name)
        self._files = Storage(self.uri)
        self._lock: ProcessLock | None = None

    def check_storage(self) -> None:
        """Make the run's folder and try it; raises UserError where nothing can be written."""
        try:
            self._files.create()
            self._files.probe()
        except OSError as error:
            raise UserError(
                f"ray.storage {mask(self.storage)!r} cannot be written: "
                f"{' '.join(str(error).split())}; give a folder or URI that this machine and all "
                "workers can write"
            ) from None

    def hold(self) -> None:
        """Keep other drivers from this run until `close`; raises UserError where one holds it.

        Drivers that share the folder see each other, as far as its file system knows locks. With
        an object store those of one machine and user do.
        """
        path = self._files.local_path(_LOCK)
        if path is None:
            path = user_cache("drivers") / hashlib.sha256(self.uri.encode()).hexdigest()
        with contextlib.suppress(OSError):  # no room for locks, or none in this file system
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = ProcessLock(path)
            try:
                self._lock.acquire(f"process {os.getpid()} on {platform.node()}")
            except LockHeldError as error:
                raise self._held_by(error.holder, path) from None

    def close(self) -> None:
        """Let other drivers have this run, if it was held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _held_by(self, other: str, path: Path) -> UserError:
        return UserError(
            f"run {self.name!r} is being trained by {other or 'another process'}; wait for it, "
            "stop it (kill, or ray job stop), or choose another --run name; if that machine is "
            f"gone, delete {path}"
        )

    def read(self) -> dict[str, Any] | None:
        """The record; None for a run that was never begun."""
        return self._read(_RECORD)

    def write(self, run_id: str, status: Status, config: Config) -> None:
        """Replace the record."""
        self._write(_RECORD, {"run_id": run_id, "status": status, "config": config.recorded()})

    def note_failure(self, reason: Exception) -> None:
        """Leave word that a restart would only fail again; the workers' restart reads it."""
        kind = "user" if isinstance(reason, UserError) else "training"
        self._write(_NOTE, {"kind": kind, "reason": str(reason)})

    def noted_failure(self) -> UserError | TrainingFailed | None:
        """The failure that a worker has noted, if any."""
        note = self._read(_NOTE)
        if note is None:
            return None
        return (UserError if note["kind"] == "user" else TrainingFailed)(note["reason"])

    def forget_failure(self) -> None:
        """Give a run that failed another try."""
        self._files.delete(_NOTE)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._files.read(name)))
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._files.write(name, json.dumps(content, indent=1).encode())

    def resumable(
        self, resume: Resume, config: Config, may_change: Collection[str] = MAY_CHANGE
    ) -> str | None:
        """The MLflow run to go on with, None to begin a new one.

        ``may_change`` are sections and fields. Raises UserError where the name is taken, finished,
        absent, or was begun with a configuration that this one cannot continue.
        """
        record = self.read()
        if record is None:
            if resume == "must":
                raise UserError(
                    f"--resume must: there is no run {self.name!r} in {mask(self.storage)}"
                )
            return None
        if record["status"] == "finished":
            raise UserError(f"run {self.name!r} is finished; choose another --run name")
        if resume == "never":
            raise UserError(
                f"--resume never: run {self.name!r} exists in {mask(self.storage)}; "
                "choose another --run name or delete it"
            )
        _check_same(self.name, record["config"], config.recorded(), may_change)
        return str(record["run_id"])


def storage_root(config: Config) -> str:
    """The configured storage, by default ``./runs``, as an absolute path or URI."""
    return config.ray.storage or str(Path("runs").absolute())


def _check_same(
    name: str, old: dict[str, Any], new: dict[str, Any], may_change: Collection[str]
) -> None:
    default = Config().recorded()  # for fields that did not exist yet
    fixed = {
        f"{section}.{key}": (old.get(section, {}).get(key, default[section][key]), value)
        for section, fields in new.items()
        for key, value in fields.items()
        if section not in may_change and f"{section}.{key}" not in may_change
    }
    changed = [
        f"{path} = {before!r}, now {now!r}"
        for path, (before, now) in fixed.items()
        if before != now
    ]
    if changed:
        raise UserError(
            f"run {name!r} was begun with {'; '.join(changed)}. Keep it to resume, or choose "
            f"another --run name; what may change: {', '.join(may_change)}"
        )
