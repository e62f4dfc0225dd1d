"""The record of a named run beside its checkpoints: what makes a name a resume key."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pyarrow import ArrowInvalid, fs

from pipeline.config import Config
from pipeline.errors import TrainingFailed, UserError

Resume = Literal["auto", "never", "must"]
Status = Literal["running", "finished", "failed", "stopped"]

# What a resumed training must share with its beginning; everything else may change.
FIXED_SECTIONS = ("model", "assign", "loss")
FIXED_FIELDS = (
    *("data.train", "data.parts", "data.window", "train.batch_size", "train.seed"),
    *("train.lr_scaling", "train.lr_batch"),
    *("train.epochs", "train.lr", "train.warmup_steps", "train.final_lr", "train.ema_decay"),
)


class RunRecord:
    """``run.json`` in the run's folder of the storage: its MLflow run, status and configuration."""

    def __init__(self, storage: str, name: str) -> None:
        self.name, self.storage = name, storage
        self.uri = f"{storage.rstrip('/')}/{name}"
        try:
            self._files, folder = fs.FileSystem.from_uri(self.uri)
            self._files.create_dir(folder, recursive=True)
        except (ArrowInvalid, OSError) as error:
            raise UserError(
                f"ray.storage {storage!r} cannot be written: {error}; give a folder or URI that "
                "this machine and all workers can write"
            ) from None
        self._path, self._note = f"{folder}/run.json", f"{folder}/failure.json"

    def read(self) -> dict[str, Any] | None:
        """The record; None for a run that was never begun."""
        if self._files.get_file_info(self._path).type == fs.FileType.NotFound:
            return None
        with self._files.open_input_stream(self._path) as stream:
            return dict(json.loads(stream.read()))

    def write(self, run_id: str, status: Status, config: Config) -> None:
        """Replace the record."""
        record = {"run_id": run_id, "status": status, "config": config.recorded()}
        self._replace(self._path, record)

    def note_failure(self, reason: Exception) -> None:
        """Leave word that a restart would only fail again; the workers' restart reads it."""
        kind = "user" if isinstance(reason, UserError) else "training"
        self._replace(self._note, {"kind": kind, "reason": str(reason)})

    def noted_failure(self) -> UserError | TrainingFailed | None:
        """The failure that a worker has noted, if any."""
        if self._files.get_file_info(self._note).type == fs.FileType.NotFound:
            return None
        with self._files.open_input_stream(self._note) as stream:
            note = json.loads(stream.read())
        return (UserError if note["kind"] == "user" else TrainingFailed)(note["reason"])

    def forget_failure(self) -> None:
        """Give a run that failed another try."""
        if self._files.get_file_info(self._note).type != fs.FileType.NotFound:
            self._files.delete_file(self._note)

    def _replace(self, path: str, content: dict[str, Any]) -> None:
        # Several ranks may note a failure at once, and a reader must never see half of it.
        draft = f"{path}.{uuid.uuid4().hex}.part"
        with self._files.open_output_stream(draft) as stream:
            stream.write(json.dumps(content, indent=1).encode())
        self._files.move(draft, path)

    def resumable(
        self, resume: Resume, config: Config, fixed: Sequence[str] = FIXED_SECTIONS
    ) -> str | None:
        """The MLflow run to go on with, None to begin a new one.

        ``fixed`` are the sections that must not change. Raises UserError where the name is taken,
        finished, absent, or was begun with a configuration that this one cannot continue.
        """
        record = self.read()
        if record is None:
            if resume == "must":
                raise UserError(f"--resume must: there is no run {self.name!r} in {self.storage}")
            return None
        if record["status"] == "finished":
            raise UserError(f"run {self.name!r} is finished; choose another --run name")
        if resume == "never":
            raise UserError(
                f"--resume never: run {self.name!r} exists in {self.storage}; "
                "choose another --run name or delete it"
            )
        _check_same(self.name, record["config"], config.recorded(), fixed)
        return str(record["run_id"])


def storage_root(config: Config) -> str:
    """The configured storage, by default ``./runs``, as an absolute path or URI."""
    return config.ray.storage or str(Path("runs").absolute())


def _check_same(name: str, old: dict[str, Any], new: dict[str, Any], fixed: Sequence[str]) -> None:
    fields = [f"{section}.{key}" for section in fixed for key in new[section]]
    for path in (*fields, *FIXED_FIELDS):
        section, key = path.split(".")
        before, now = old[section].get(key), new[section][key]
        if before != now:
            raise UserError(
                f"run {name!r} was begun with {path} = {before!r}, now {now!r}; "
                "keep it to resume, or choose another --run name"
            )
