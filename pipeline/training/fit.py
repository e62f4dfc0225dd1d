"""The driver: one training from a configuration to a registered model version."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from model.options import check_class_weights
from model.published import PUBLISHED
from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.data import Manifest, check_batches, load_manifest
from pipeline.data.loading.repeat_sampling import check_image_classes
from pipeline.distributed.ray_cluster import check_cluster_paths
from pipeline.errors import OutageError, TrainingStopped, UserError
from pipeline.pretrained import check_start, explain_freezing, stages_to_freeze
from pipeline.progress import counted
from pipeline.storage.folder import join
from pipeline.tracking import (
    create_run,
    discard_run_spec,
    finish_run,
    resolve_run_id,
    resolve_run_store,
    resume_run,
    spool_folder,
)
from pipeline.training.data_content import summarize_data
from pipeline.training.ray_backend.launch import train_in_ray
from pipeline.training.registration import register_result
from pipeline.training.run_record import Resume, RunRecord
from pipeline.training.session import LocalSession, check_same_run, launched_world
from pipeline.training.stop import stop_signal
from pipeline.training.worker import run_rank

_LOG = logging.getLogger(__name__)
_PATHS = ("data.train", "data.val", "data.test", "model.init")
_NO_CONTEXT: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(frozen=True)
class FitResult:
    """The results of a training and where they are stored."""

    run: str
    run_id: str
    tracking_uri: str
    checkpoint: str
    best_step: int  # of the checkpoint
    total_steps: int
    metrics: dict[str, float]
    weights_sha256: str  # of the last step, like the next; a checkpoint's are in its meta.json
    ema_sha256: str
    seconds: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    version: str | None = None
    unscored: dict[str, list[str]] = field(default_factory=dict)
    """Classes of data.train that data.val or data.test lacks, by use."""


def fit(
    config: Config,
    *,
    run: str,
    resume: Resume = "auto",
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Any] = (),
    label: str = "",
) -> FitResult:
    """Train, evaluate and register as configured; jobs, sweeps and tests all call this.

    ``run`` names the training and is the key to resume it by. ``callbacks`` are Ray Train's
    (``ray.train.UserCallback``). ``label`` is put before every progress line. Under torchrun, with
    ``ray.enabled`` false, every process calls this function; rank 0 does what is done once, and all
    return the same.

    Raises UserError for mistakes found before or during training, OutageError if a service does not
    respond, TrainingFailed if workers failed for good, TrainingStopped after SIGTERM; the status of
    the MLflow run matches.
    """
    began = time.monotonic()
    config = absolute_paths(config)
    with (
        launched_world(config.ray) as world,
        contextlib.closing(RunRecord(*world.broadcast((config.ray.storage_uri(), run)))) as record,
    ):
        config = config.replace(world.on_main(lambda: record.recorded_assignment(config)))
        config = config.replace(world.on_main(lambda: record.recorded_freezing(config)))
        manifests = world.on_each(lambda: check_data(config))
        images = manifests["train"].samples
        if (line := explain_freezing(config, images)) and world.is_main:
            print(f"{label}: {line}" if label else line, file=sys.stderr, flush=True)
        config = config.replace({"model.freeze_stages": stages_to_freeze(config, images)})
        data = summarize_data(manifests)
        check_cluster_paths(config)
        check_batches(config, config.ray.max_workers if config.ray.enabled else world.size)
        check_same_run(record, world)
        uri = world.on_main(lambda: resolve_run_store(config.tracking))
        run_id = world.on_main(
            lambda: _start_run(config, record, uri, resume, parent_run_id, tags or {}, manifests)
        )
        closing = close_run(uri, run_id, record, config) if world.is_main else _NO_CONTEXT
        with stop_signal() as stop, closing:
            record.when_lost(lambda: stop.request("its lease was lost"))
            if config.ray.enabled:
                outcome = train_in_ray(config, record, uri, run_id, callbacks, stop, label)
            else:
                store = CheckpointStore(record.uri, record.check_lease)
                session = LocalSession(world, store, stop)
                own = run_rank(config, session, uri, run_id, spool_folder(record.uri), label)
                outcome = world.broadcast(own)
            trained = time.monotonic()
            checkpoint = join(record.uri, outcome.checkpoint)
            world.on_main(record.check_lease)
            version = world.on_main(
                lambda: register_result(config, uri, run_id, record, checkpoint, outcome, data)
            )
        # A run that started without a store may have reached it in the meantime.
        run_id = world.on_main(lambda: _resolved_run_id(uri, run_id, record))
        return FitResult(
            run=record.name,
            run_id=run_id,
            tracking_uri=uri,
            checkpoint=checkpoint,
            best_step=outcome.best_step,
            total_steps=outcome.total_steps,
            metrics=outcome.metrics,
            weights_sha256=outcome.weights_sha256,
            ema_sha256=outcome.ema_sha256,
            seconds={
                "fit": round(trained - began, 1),
                "training": outcome.seconds,
                "register": round(time.monotonic() - trained, 1),
            },
            model_uri=version.model_uri if version else None,
            version=str(version.version) if version else None,
            unscored={one.use: one.lacking for one in data if one.lacking},
        )


def _start_run(
    config: Config,
    record: RunRecord,
    uri: str,
    resume: Resume,
    parent_run_id: str | None,
    tags: Mapping[str, str],
    manifests: Mapping[str, Manifest],
) -> str:
    """Create or resume the MLflow run, record that it is running, and return its id."""
    record.check_storage()
    record.hold(config.ray.lease_seconds)
    spool = spool_folder(record.uri)
    run_id = record.resumable_run_id(resume, config)
    if run_id is None:
        check_start(config, manifests["train"].classes, uri)
        all_tags = {"run": record.name, **tags}
        run_id = create_run(uri, config, record.name, all_tags, parent_run_id, manifests, spool)
    else:
        info = record.read()
        before = "; ".join([*([info.status] if info else []), *record.interventions])
        run_id = resume_run(uri, run_id, spool, before, config.tracking.required)
    record.write(run_id, "running", config)
    discard_run_spec(spool, run_id)
    return run_id


def check_data(config: Config) -> dict[str, Manifest]:
    """Return the manifests of the configured sets.

    Raises UserError if their classes differ, if there is nothing to learn, or if
    `loss.class_weights` names other classes.
    """
    if config.data.train is None:
        raise UserError("data.train is not set; give a shard set made by `python -m jobs.prepare`")
    uris = {use: getattr(config.data, use) for use in ("train", "val", "test")}
    manifests = {use: load_manifest(uri, config.data.retries) for use, uri in uris.items() if uri}
    if not (manifests["train"].countable_boxes or config.data.allow_no_objects):
        raise UserError(
            f"data.train ({uris['train']}) has no object to learn in "
            f"{counted(manifests['train'].samples, 'sample')}; convert it with its labels, or set "
            "data.allow_no_objects"
        )
    if config.data.repeat_threshold:
        check_image_classes(str(uris["train"]), manifests["train"])
    for use, manifest in manifests.items():
        if manifest.classes != manifests["train"].classes:
            raise UserError(
                f"data.{use} ({uris[use]}) has the classes {', '.join(manifest.classes)}, but "
                f"data.train ({uris['train']}) has {', '.join(manifests['train'].classes)}; "
                "prepare both with the same --classes"
            )
    check_weighted_classes(config, manifests["train"].classes)
    return manifests


def check_weighted_classes(config: Config, classes: Sequence[str]) -> None:
    """Raise UserError if a weight of `loss.class_weights` is for none of the classes."""
    try:
        check_class_weights(config.loss.class_weights, classes)
    except ValueError as error:
        raise UserError(f"loss.{error}") from None


def absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths of data and weights.

    Workers run in other working directories.
    """
    return config.replace(
        {field: absolute_value(field, attrgetter(field)(config)) for field in _PATHS}
    )


def absolute_value(field: str, value: Any) -> Any:
    """Return a value of a dotted field, or a list of them, with absolute paths."""
    if isinstance(value, list):
        return [absolute_value(field, one) for one in value]
    if field not in _PATHS or not isinstance(value, str) or not value:
        return value
    if "://" in value or value.startswith("models:"):
        return value
    if field == "model.init" and value in PUBLISHED:
        return value
    return str(Path(value).absolute())


@contextlib.contextmanager
def close_run(uri: str, run_id: str, record: RunRecord, config: Config) -> Iterator[None]:
    """Set the final status of the run, in MLflow and in its record, however the block ends.

    A run that another driver has taken over keeps its status. Raises LeaseLostError.
    """
    spool = spool_folder(record.uri)
    try:
        yield
        record.check_lease()
    except BaseException as error:
        if lost := record.lost():
            raise lost from error
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | TrainingStopped)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # The record first: the store may be slow, and the process may be killed before it responds.
        try:
            record.write(run_id, "stopped" if stopped else "failed", config)
        except OSError as lost:  # a full disk must not hide why the training ended
            _LOG.warning(
                "%s/run.json could not be updated and still says running: %s", record.uri, lost
            )
        finish_run(uri, run_id, spool, "KILLED" if stopped else "FAILED", reason)  # never raises
        raise
    finish_run(uri, run_id, spool, "FINISHED")
    record.write(run_id, "finished", config)


def _resolved_run_id(uri: str, run_id: str, record: RunRecord) -> str:
    try:
        return resolve_run_id(uri, run_id, spool_folder(record.uri))
    except (UserError, OutageError):
        return run_id
