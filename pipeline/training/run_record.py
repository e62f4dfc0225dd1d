"""The record of a named run beside its checkpoints, which makes the name a resume key."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from model.options import (
    FOLLOWING_OPTIONS,
    former_assigner_options,
    former_loss_options,
)
from pipeline.config import AssignConfig, Config, EvaluateConfig
from pipeline.errors import LeaseLostError, OutageError, UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.folder import Storage, join
from pipeline.storage.lease import Lease, LeaseHeldError, check_lease
from pipeline.storage.redact import error_line, mask, mask_tree
from pipeline.training.error_hints import UnrecoverableFailure

Resume = Literal["auto", "never", "must"]
Status = Literal["running", "finished", "failed", "stopped"]
Content = TypeVar("Content", bound=Document)

# Sections and fields that a resumed training may change: how fast and where it runs, and what is
# evaluated and logged. Any other change would make it a different training.
CHANGEABLE = (
    *("data.test", "data.loader_workers", "data.prefetch", "data.cache", "data.cache_gib"),
    *("data.retries", "data.max_bad_fraction"),
    *("train.micro_batch", "train.checkpoint_every", "train.checkpoint_steps"),
    *("train.checkpoint_minutes", "train.keep_checkpoints", "train.log_every"),
    *("train.patience", "train.min_improvement", "train.profile_steps", "train.compile"),
    # Not the protocol, which decides what scores of earlier checkpoints mean.
    *(f"evaluate.{name}" for name in EvaluateConfig.model_fields if name != "protocol"),
    *("promote", "sweep", "tracking", "registry", "ray"),
)
# Fields that change the result and may change all the same: the remedies for a non-finite gradient.
# Every change is recorded.
INTERVENTIONS = ("train.lr", "train.clip_norm", "train.skip_non_finite")
# What runs that were recorded without a field were trained with, where it is not the default.
_FORMER_LOSS = {f"loss.{name}": value for name, value in former_loss_options().items()}
RECORD_FILE = "run.json"
_LOG = logging.getLogger(__name__)
_FAILURE_FILE = "failure.json"


class RunInfo(Document):
    """``run.json``: the MLflow run of a named run, its status and its configuration."""

    FORMAT_VERSION: ClassVar[int] = 2  # 1 had no interventions

    run_id: str = Field(description="of MLflow")
    status: Status
    config: dict[str, Any] = Field(
        description="the configuration, without URIs of services and secrets"
    )
    interventions: list[str] = Field(
        default_factory=list, description="changes of `INTERVENTIONS` by resumes, oldest first"
    )


class FailureInfo(Document):
    """``failure.json``: why a restart of the workers would only fail again."""

    kind: Literal["user", "training"] = Field(description="a mistake of the user, or a failure")
    reason: str


class RunRecord:
    """The files of a run in its folder of the storage, apart from checkpoints.

    ``owner`` is the token of the driver's lease in its workers. A process without one, or that does
    not `hold` the run, is not checked.
    """

    def __init__(self, storage: str, name: str, owner: str = "") -> None:
        self.name, self.storage, self.owner = name, storage, owner
        self.uri = join(storage, name)
        self._files = Storage(self.uri)
        self._lease: Lease | None = None
        self._earlier_interventions: list[str] = []
        self.interventions: list[str] = []  # of this resume

    @property
    def driver(self) -> str:
        """Return a key of this driver, the same in its workers."""
        return f"{self.uri} {self.owner}"

    def check_storage(self) -> None:
        """Create the run's folder and test it.

        Raises UserError where nothing can be written, OutageError if the store does not respond.
        """
        try:
            self._files.create()
            self._files.probe()
        except OutageError:
            raise
        except OSError as error:
            raise self._not_writable(error) from None

    def hold(self, seconds: float = 60.0) -> None:
        """Lease this run against other drivers until `close`, for ``seconds`` between heartbeats.

        Waits until the lease of a driver that has disappeared expires. Raises UserError if a driver
        holds it, OutageError if the store does not respond.
        """
        lease = Lease(self._files, f"run {self.name!r}", seconds)
        try:
            lease.acquire()
        except LeaseHeldError as error:
            raise UserError(
                f"run {self.name!r} is being trained by {error.holder}; wait for it, stop it "
                "(kill, or ray job stop), or choose another --run name"
            ) from None
        except OutageError:
            raise
        except OSError as error:
            raise self._not_writable(error) from None
        self._lease, self.owner = lease, lease.owner

    def close(self) -> None:
        """Release the lease, if it is held. A run that was not started leaves nothing."""
        if self._lease is not None:
            started = True
            with contextlib.suppress(OSError):
                started = self._files.exists(RECORD_FILE)
            self._lease.release(delete=not started)
            self._lease = None

    def when_lost(self, call: Callable[[], object]) -> None:
        """Call a function, from another thread, if this driver loses its lease."""
        if self._lease is not None:
            self._lease.when_lost(call)

    def check_lease(self) -> None:
        """Check that this driver, or the one of this worker, still holds the run.

        Raises LeaseLostError, or OSError if that cannot be read.
        """
        if self._lease is not None and self._lease.lost is not None:
            raise self._lease.lost
        if self.owner:
            check_lease(self._files, self.owner, f"run {self.name!r}")

    def lost(self) -> LeaseLostError | None:
        """Return the error of the loss of the lease, or None if no other holder is known."""
        try:
            self.check_lease()
        except LeaseLostError as error:
            return error
        except OSError:
            pass
        return None

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(
            f"ray.storage {mask(self.storage)!r} cannot be written: {error_line(error)}; give a "
            "folder or URI that this machine and all workers can write"
        )

    def read(self) -> RunInfo | None:
        """Read ``run.json``; None for a run that was never started."""
        return self._read(RECORD_FILE, RunInfo)

    def recorded_assignment(self, config: Config) -> dict[str, Any]:
        """Return, by dotted field, the options of assigner and loss that the run was started with,
        where they are unset now.

        A run of an earlier version had a loss that did not follow its assigner, and assigners
        without the options that were added since.
        """
        try:
            info = self.read()
        except OSError:
            return {}  # the next access to the storage reports it
        if info is None:
            return {}
        former = _former(info.config)
        fields = [f"loss.{name}" for name in FOLLOWING_OPTIONS]
        fields += [f"assign.{name}" for name in former_assigner_options()]
        found = {}
        for field in fields:
            section, _, name = field.partition(".")
            recorded = info.config.get(section, {}).get(name, former.get(field))
            if getattr(getattr(config, section), name) is None and recorded is not None:
                found[field] = recorded
        return found

    def recorded_freezing(self, config: Config) -> dict[str, Any]:
        """Return ``model.freeze_stages`` of the start of the run by its dotted field, if it is
        unset now.

        Sweeps and comparisons leave it to their trainings, except those of earlier versions, which
        froze nothing that was not set, whatever their trainings start from.
        """
        if config.model.freeze_stages is not None:
            return {}
        try:
            info = self.read()
        except OSError:
            return {}  # the next access to the storage reports it
        if info is None or (config.model.init is None and not _is_former(info.config)):
            return {}
        stages = info.config.get("model", {}).get("freeze_stages", 0)
        return {} if stages is None else {"model.freeze_stages": stages}

    def mixed_precision(self, config: Config) -> str | None:
        """Return a line if new trainings of this sweep or comparison would differ in precision."""
        info = self.read()
        if info is None or not _is_former(info.config) or config.train.precision != "auto":
            return None
        return (
            "began when train.precision auto meant fp32 on every CPU; its new trainings compute in "
            "bf16 where the CPU does, which is compared with the others; a new --run name avoids it"
        )

    def write(self, run_id: str, status: Status, config: Config) -> None:
        """Replace ``run.json``. Raises OSError, LeaseLostError."""
        self.check_lease()
        interventions = [*self._earlier_interventions, *self.interventions]
        info = RunInfo(
            run_id=run_id,
            status=status,
            config=mask_tree(config.recorded()),
            interventions=interventions,
        )
        self._files.write(RECORD_FILE, info.encode())

    def write_failure(self, error: Exception) -> None:
        """Record that a restart would only fail again, for workers that restart to read.

        Raises OSError, LeaseLostError.
        """
        self.check_lease()
        kind: Literal["user", "training"] = "user" if isinstance(error, UserError) else "training"
        self._files.write(_FAILURE_FILE, FailureInfo(kind=kind, reason=mask(str(error))).encode())

    def read_failure(self) -> UserError | UnrecoverableFailure | None:
        """Return the failure that a worker has recorded, if any."""
        failure = self._read(_FAILURE_FILE, FailureInfo)
        if failure is None:
            return None
        return (UserError if failure.kind == "user" else UnrecoverableFailure)(failure.reason)

    def clear_failure(self) -> None:
        """Delete the recorded failure, so that the run is tried again. Raises as `write`."""
        self.check_lease()
        self._files.delete(_FAILURE_FILE)

    def _read(self, name: str, kind: type[Content]) -> Content | None:
        try:
            return kind.parse(self._files.read(name), f"{self._files}/{name}")
        except FileNotFoundError:
            return None
        except DocumentError as error:
            raise UserError(f"{error}; restore the file or choose another --run name") from None

    def resumable_run_id(
        self,
        resume: Resume,
        config: Config,
        changeable: Collection[str] = (*CHANGEABLE, *INTERVENTIONS),
        *,
        extend: bool = False,
    ) -> str | None:
        """Return the id of the MLflow run to resume, or None to create a new one.

        ``changeable`` are sections and fields; changes of `INTERVENTIONS` are warned about and kept
        for `write`. ``extend`` accepts a finished run. Raises UserError if the run is finished, if
        it exists or is absent against ``resume``, or if its configuration differs elsewhere.
        """
        info = self.read()
        if info is None:
            if resume == "must":
                raise UserError(
                    f"--resume must: there is no run {self.name!r} in {mask(self.storage)}"
                )
            return None
        if info.status == "finished" and not extend:
            raise UserError(f"run {self.name!r} is finished; choose another --run name")
        if resume == "never":
            raise UserError(
                f"--resume never: run {self.name!r} exists in {mask(self.storage)}; "
                "choose another --run name or delete it"
            )
        # Both masked: earlier versions recorded the whole URI of `model.init`.
        changes = _changes(mask_tree(info.config), mask_tree(config.recorded()))
        fixed = [
            change
            for path, change in changes.items()
            if path not in changeable and path.split(".")[0] not in changeable
        ]
        if fixed:
            raise UserError(
                f"run {self.name!r} was started with {'; '.join(fixed)}. Restore the old value to "
                "resume, or choose another --run name; fields that may change: "
                f"{', '.join(changeable)}"
            )
        self._earlier_interventions = info.interventions
        self.interventions = [changes[path] for path in INTERVENTIONS if path in changes]
        if self.interventions:
            _LOG.warning("run %r had %s", self.name, "; ".join(self.interventions))
        return info.run_id


def _former(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recorded configuration without these fields was trained with."""
    assigner = config.get("assign", {}).get("name", AssignConfig().name)
    own = former_assigner_options(assigner)
    return {**{f"assign.{name}": value for name, value in own.items()}, **_FORMER_LOSS}


def _is_former(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration was recorded before ``train.optimizer`` and, with it, default
    freezing and bf16 on CPUs existed."""
    return "optimizer" not in config.get("train", {})


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that differ, each with a description of its change."""
    # Of fields that did not exist yet.
    default, former, values = Config().recorded(), _former(old), {}
    for section, fields in new.items():
        for key, value in fields.items():
            absent = former.get(f"{section}.{key}", default[section][key])
            values[f"{section}.{key}"] = (old.get(section, {}).get(key, absent), value)
    return {
        path: f"{path} = {before!r}, now {now!r}"
        for path, (before, now) in values.items()
        if before != now
    }
