"""The driver: one training from a configuration to a registered model version."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data import Manifest, load_manifest
from pipeline.errors import UserError
from pipeline.pretrained import check_start
from pipeline.registry import register
from pipeline.tracking import create_run, finish_run, resolve_uri, resume_run
from pipeline.training.checkpoint import load_averaged_weights
from pipeline.training.cluster import check_cluster_paths
from pipeline.training.ray_train import train_in_ray
from pipeline.training.runs import Resume, RunRecord, storage_root
from pipeline.training.session import local_session
from pipeline.training.worker import run_rank


@dataclass(frozen=True)
class FitResult:
    """Where everything of a training is."""

    run: str
    run_id: str
    tracking_uri: str
    checkpoint: str
    metrics: dict[str, float]
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
    (``ray.train.UserCallback``). Raises UserError for mistakes found before or during training,
    TrainingFailed where workers failed for good; the MLflow run's status says the same.
    """
    began = time.monotonic()
    config = absolute_paths(config)
    manifests = check_data(config)
    check_cluster_paths(config)
    uri = resolve_uri(config.tracking)
    record = RunRecord(storage_root(config), run)
    run_id = record.resumable(resume, config)
    if run_id is None:
        check_start(config, manifests["train"].classes, uri)
        run_id = create_run(
            uri, config, run, {"run": run, **(tags or {})}, parent_run_id, manifests
        )
    else:
        resume_run(uri, run_id)
    record.write(run_id, "running", config)
    with closing_run(uri, run_id, record, config):
        if config.ray.enabled:
            outcome = train_in_ray(config, record, uri, run_id, callbacks)
        else:
            outcome = _train_here(config, record, uri, run_id)
        trained = time.monotonic()
        checkpoint = f"{record.uri}/{outcome['checkpoint']}"
        version = _register(config, uri, run_id, checkpoint, outcome, manifests)
    return FitResult(
        run=run,
        run_id=run_id,
        tracking_uri=uri,
        checkpoint=checkpoint,
        metrics=outcome["metrics"],
        seconds={
            "fit": round(trained - began, 1),
            "training": outcome["seconds"],
            "register": round(time.monotonic() - trained, 1),
        },
        model_uri=version.model_uri if version else None,
        version=str(version.version) if version else None,
    )


def check_data(config: Config) -> dict[str, Manifest]:
    """The manifests of the configured sets; raises UserError if their classes differ."""
    if config.data.train is None:
        raise UserError("data.train is not set; give a shard set made by `python -m jobs.prepare`")
    uris = {use: getattr(config.data, use) for use in ("train", "val", "test")}
    manifests = {use: load_manifest(uri) for use, uri in uris.items() if uri}
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
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        finish_run(uri, run_id, "KILLED" if stopped else "FAILED")  # never raises
        record.write(run_id, "stopped" if stopped else "failed", config)
        raise
    finish_run(uri, run_id, "FINISHED")
    record.write(run_id, "finished", config)


def _train_here(config: Config, record: RunRecord, uri: str, run_id: str) -> dict[str, Any]:
    if "://" in record.uri:
        raise UserError(f"without Ray, ray.storage must be a local folder, not {record.storage}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ray.enabled false trains alone, but $WORLD_SIZE is set; unset it")
    with local_session(config, Path(record.uri)) as session:
        return run_rank(config, session, uri, run_id)


def _register(
    config: Config,
    uri: str,
    run_id: str,
    checkpoint: str,
    outcome: Mapping[str, Any],
    manifests: Mapping[str, Manifest],
) -> Any:
    if config.registry.name is None:
        return None
    print(f"registering {config.registry.name} ...", file=sys.stderr, flush=True)
    from ray.train import Checkpoint

    with Checkpoint(checkpoint).as_directory() as folder:
        weights = load_averaged_weights(Path(folder))
    return register(
        uri,
        run_id,
        config.registry.name,
        weights=weights,
        spec=outcome["spec"],
        classes=outcome["classes"],
        config=config,
        metrics=outcome["metrics"],
    )
