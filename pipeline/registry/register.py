"""Adding a version to the registry, once per run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.registry.bundle import Content, write_bundle
from pipeline.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

_NAME_TAG, _MODEL_TAG = "registry.name", "logged_model"
_ORIGIN_TAGS = {"mlflow.source.git.commit": "git.revision", "git.dirty": "git.dirty"}


class RegisteredVersion(NamedTuple):
    """A version in the registry; ``model_uri`` loads it."""

    name: str
    version: int
    model_uri: str


def register(
    uri: str,
    run_id: str,
    name: str,
    *,
    weights: Mapping[str, Tensor],
    spec: Mapping[str, Any],
    classes: Sequence[str],
    config: Config,
    metrics: Mapping[str, float],
    figures: Sequence[Path] = (),
) -> RegisteredVersion:
    """Bundle a detector and make it the next version of ``name``, linked to its run.

    A run has at most one version of a name: registering it again, also after a try that was killed
    half-way, completes or returns the one that exists.
    Metrics and fingerprints become the version's tags, because deleted runs lose theirs.
    """
    check_name(name)
    client = connect(uri)
    version = _version_of_run(client, name, run_id)
    if version is None:
        run = client.get_run(run_id)
        origin = _origin(run)
        model = _uploaded(client, run, name)
        if model is None:
            content = Content(name, weights, spec, classes, config, metrics, origin, figures)
            model = _upload(client, run, content)
        _ensure_model(client, name)
        tags = {**origin, **{key: f"{value:.6g}" for key, value in metrics.items()}}
        # Not models:/ID: the database's registry would look that up in the process-wide store.
        version = client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            tags={**tags, _MODEL_TAG: model.model_id},
        )
    # The database keeps no link between the two; this tag is how MLflow's pages find it.
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(version.tags[_MODEL_TAG], {"mlflow.modelVersions": link})
    return RegisteredVersion(name, int(version.version), f"models:/{name}/{version.version}")


def check_name(name: str) -> None:
    """Raises UserError on names that cannot stand in ``models:/NAME/VERSION``."""
    if not name.strip() or set(name) & set("/:@'\"?#%"):
        raise UserError(f"registry.name {name!r}: use letters, digits, '.', '_' and '-'")


def _version_of_run(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _uploaded(client: MlflowClient, run: Run, name: str) -> LoggedModel | None:
    """What an earlier try uploaded whole before it was killed; what it left half-way is closed."""
    whole = None
    for model in client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    ):
        if model.tags.get(_NAME_TAG) != name:
            continue
        if model.status == "READY":
            whole = model
        elif model.status == "PENDING":
            client.finalize_logged_model(model.model_id, "FAILED")
    return whole


def _origin(run: Run) -> dict[str, str]:
    tags = run.data.tags
    origin = {"run_id": run.info.run_id}
    origin |= {new: tags[old] for old, new in _ORIGIN_TAGS.items() if old in tags}
    origin |= {key: tags[key] for key in sorted(tags) if key.startswith("data.")}
    return origin


def _upload(client: MlflowClient, run: Run, content: Content) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput

    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id,
        name="detector",
        source_run_id=run_id,
        tags={_NAME_TAG: content.name},
        model_type="detector",
    )
    model_id: str = logged.model_id
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_bundle(content, folder, run_id, model_id)
            client.log_model_artifacts(model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return client.finalize_logged_model(model_id, "READY")


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
