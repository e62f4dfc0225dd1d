"""Register any checkpoint of a run as a version of a model."""

from __future__ import annotations

import contextlib

from pipeline.checkpoints.format import load_averaged_weights, load_meta
from pipeline.checkpoints.meta import CheckpointMeta
from pipeline.config import Config
from pipeline.data import load_manifest
from pipeline.errors import OutageError, UserError
from pipeline.registry import BundleContent, RegisteredVersion, register
from pipeline.registry.load import checkpoint_folder
from pipeline.registry.model_card import DataSummary
from pipeline.registry.register import find_registered
from pipeline.registry.tuned_version import TunedSettings, is_active_run
from pipeline.storage.folder import absolute, split
from pipeline.tracking import create_run, resolve_run_id, spool_folder
from pipeline.training.data_content import summarize_data
from pipeline.training.run_record import RunInfo, RunRecord


def register_checkpoint(
    uri: str, path: str, name: str, tuned: TunedSettings | None = None
) -> RegisteredVersion:
    """Register the checkpoint at a folder, or the selected one of a run's folder.

    ``tuned`` are settings of post-processing instead of those of the training. The version belongs
    to the MLflow run of the training if the checkpoint is in its folder and the store at ``uri``
    has that run, else to a new run. Registering the same weights and settings again returns the
    version that exists. Raises UserError.
    """
    folder = checkpoint_folder(path)
    meta = load_meta(folder)
    config = Config.known_fields(meta.config).replace({"registry.name": name})
    content = BundleContent(
        name=name,
        weights=load_averaged_weights(folder),
        spec=meta.spec,
        classes=meta.classes,
        config=config,
        metrics=meta.metrics or {},
        temperature=meta.temperature,
        data=_data(meta, config),
    )
    if tuned is not None:
        content = tuned.apply(content, folder, meta.data.val)
    run_id = _run_id(uri, folder)
    if run_id is None:
        if existing := find_registered(uri, content):
            return existing
        run_id = _new_run(uri, config, folder)
    return register(uri, run_id, content)


def _data(meta: CheckpointMeta, config: Config) -> list[DataSummary]:
    """Describe the sets of the training, if they are still where they were, and the same."""
    manifests = {}
    for use, content in (("train", meta.data.train), ("val", meta.data.val)):
        uri = getattr(config.data, use)
        if uri and content:
            with contextlib.suppress(UserError, OutageError):
                manifest = load_manifest(uri, retries=0)
                if manifest.content_hash == content:
                    manifests[use] = manifest
    return summarize_data(manifests) if "train" in manifests else []


def _run_id(uri: str, folder: str) -> str | None:
    """Return the MLflow run of the training that wrote a checkpoint, if the store has it."""
    run, _ = split(absolute(folder))
    record = RunRecord(*split(run))
    info: RunInfo | None = record.read()
    if info is None:
        return None
    try:
        run_id = resolve_run_id(uri, info.run_id, spool_folder(record.uri))
    except UserError:
        return None
    return run_id if is_active_run(uri, run_id) else None


def _new_run(uri: str, config: Config, folder: str) -> str:
    from pipeline.tracking import connect

    run_id = create_run(uri, config, f"register {split(folder)[1]}", {"checkpoint": folder})
    connect(uri).set_terminated(run_id)
    return run_id
