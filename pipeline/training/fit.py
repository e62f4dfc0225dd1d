"""The driver: one training from a configuration to a registered model version."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.data import Manifest, load_manifest
from pipeline.distributed.ray_cluster import check_cluster_paths
from pipeline.errors import TrainingStopped, UserError
from pipeline.pretrained import check_start
from pipeline.storage.folder import join
from pipeline.tracking import (
    create_run,
    discard_run_spec,
    finish_run,
    resolve_run_id,
    resolve_uri,
    resume_run,
    spool_folder,
)
from pipeline.training.ray_backend.launch import train_in_ray
from pipeline.training.registration import register_result
from pipeline.training.run_record import Resume, RunRecord, storage_root
from pipeline.training.session import LocalSession, launched_world
from pipeline.training.stop import stop_signal
from pipeline.training.worker import run_rank

_LOG = logging.getLogger(__name__)
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(frozen=True)
class FitResult:
    """Where everything of a training is."""

    run: str
    run_id: str
    tracking_uri: str
    checkpoint: str
    step: int  # after which that checkpoint was saved
    steps: int  # trained in all
    metrics: dict[str, float]
    weights_sha256: str  # of the last step, as is the next; a checkpoint's are in its meta.json
    ema_sha256: str
    seconds: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    version: str | None = None


def fit(
    config: Config,
    *,
    run: str,
    resume: Resume = "auto",
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Train, evaluate and register as the configuration says; the same for jobs and sweeps.

    ``run`` names the training and is the key to resume it by. ``callbacks`` are Ray Train's
    (``ray.train.UserCallback``). Under torchrun every process calls it, with ``ray.enabled`` false;
    rank 0 does what is done once, and all return the same. Raises UserError for mistakes found
    before or during training, TrainingFailed where workers failed for good, TrainingStopped after
    SIGTERM; the MLflow run's status says the same.
    """
    began = time.monotonic()
    config = absolute_paths(config)
    manifests = check_data(config)
    check_cluster_paths(config)
    with (
        launched_world(config.ray) as world,
        contextlib.closing(RunRecord(storage_root(config), world.share(run))) as record,
    ):
        uri = world.on_main(lambda: resolve_uri(config.tracking))
        run_id = world.on_main(
            lambda: _begin(config, record, uri, resume, parent_run_id, tags or {}, manifests)
        )
        closing = closing_run(uri, run_id, record, config) if world.is_main else _NOTHING
        with stop_signal() as stop, closing:
            if config.ray.enabled:
                outcome = train_in_ray(config, record, uri, run_id, callbacks, stop)
            else:
                session = LocalSession(world, CheckpointStore(record.uri), stop)
                outcome = world.share(
                    run_rank(config, session, uri, run_id, spool_folder(record.uri))
                )
            trained = time.monotonic()
            checkpoint = join(record.uri, outcome["checkpoint"])
            version = world.on_main(
                lambda: register_result(config, uri, run_id, record, checkpoint, outcome)
            )
        # A run that began without a store may have reached it meanwhile.
        run_id = world.on_main(lambda: _known(uri, run_id, record))
        return FitResult(
            run=record.name,
            run_id=run_id,
            tracking_uri=uri,
            checkpoint=checkpoint,
            step=outcome["step"],
            steps=outcome["steps"],
            metrics=outcome["metrics"],
            weights_sha256=outcome["weights_sha256"],
            ema_sha256=outcome["ema_sha256"],
            seconds={
                "fit": round(trained - began, 1),
                "training": outcome["seconds"],
                "register": round(time.monotonic() - trained, 1),
            },
            model_uri=version.model_uri if version else None,
            version=str(version.version) if version else None,
        )


def _begin(
    config: Config,
    record: RunRecord,
    uri: str,
    resume: Resume,
    parent_run_id: str | None,
    tags: Mapping[str, str],
    manifests: Mapping[str, Manifest],
) -> str:
    """The id of the MLflow run, made or resumed; the record says that it is running."""
    record.check_storage()
    record.hold()
    spool = spool_folder(record.uri)
    run_id = record.resumable(resume, config)
    if run_id is None:
        check_start(config, manifests["train"].classes, uri)
        all_tags = {"run": record.name, **tags}
        run_id = create_run(uri, config, record.name, all_tags, parent_run_id, manifests, spool)
    else:
        before = (record.read() or {}).get("status", "")
        run_id = resume_run(uri, run_id, spool, before, config.tracking.required)
    record.write(run_id, "running", config)
    discard_run_spec(spool, run_id)
    return run_id


def check_data(config: Config) -> dict[str, Manifest]:
    """The manifests of the configured sets; raises UserError if their classes differ."""
    if config.data.train is None:
        raise UserError("data.train is not set; give a shard set made by `python -m jobs.prepare`")
    uris = {use: getattr(config.data, use) for use in ("train", "val", "test")}
    manifests = {use: load_manifest(uri, config.data.retries) for use, uri in uris.items() if uri}
    for use, manifest in manifests.items():
        if manifest.classes != manifests["train"].classes:
            raise UserError(
                f"data.{use} ({uris[use]}) has the classes {', '.join(manifest.classes)}, but "
                f"data.train ({uris['train']}) has {', '.join(manifests['train'].classes)}; "
                "prepare both with the same --classes"
            )
    return manifests


def absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths of data and weights: workers run in other folders."""
    uris = {f"data.{use}": getattr(config.data, use) for use in ("train", "val", "test")}
    uris["model.init"] = config.model.init
    return config.replace(
        {
            name: str(Path(uri).absolute())
            for name, uri in uris.items()
            if uri and "://" not in uri and not uri.startswith("models:")
        }
    )


@contextlib.contextmanager
def closing_run(uri: str, run_id: str, record: RunRecord, config: Config) -> Iterator[None]:
    """Give the run its true end, in MLflow and in its record, however the block ends."""
    spool = spool_folder(record.uri)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | TrainingStopped)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # The record first: the store may take its time, and whoever stops us may not wait.
        try:
            record.write(run_id, "stopped" if stopped else "failed", config)
        except OSError as lost:  # a full disk must not hide why the training ended
            _LOG.warning("%s/run.json still says that the run is going on: %s", record.uri, lost)
        finish_run(uri, run_id, spool, "KILLED" if stopped else "FAILED", reason)  # never raises
        raise
    finish_run(uri, run_id, spool, "FINISHED")
    record.write(run_id, "finished", config)


def _known(uri: str, run_id: str, record: RunRecord) -> str:
    try:
        return resolve_run_id(uri, run_id, spool_folder(record.uri))
    except UserError:
        return run_id
