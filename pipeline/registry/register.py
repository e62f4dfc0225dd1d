"""Adding a version to the registry, once per run."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.checkpoints.format import tensors_sha256
from pipeline.errors import UserError
from pipeline.registry.bundle import BundleContent, write_bundle
from pipeline.registry.integrity import HASH_TAG, seal
from pipeline.registry.model_card import model_card
from pipeline.storage.redact import first_line
from pipeline.tracking import check_active, connect, upload_timeout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

_LOG = logging.getLogger(__name__)
CANDIDATE = "candidate"  # the alias of the latest version that was not promoted
WEIGHTS_TAG, SETTINGS_TAG = "weights.sha256", "settings.sha256"
_MODEL_SECTIONS = ("data", "model", "assign", "loss", "train")
_MAX_DESCRIPTION = 5000  # characters
_CUT = "\n\n(cut; the whole card is README.md of the version)\n"
_NAME_TAG, MODEL_TAG = "registry.name", "logged_model"
_ORIGIN_TAGS = {"mlflow.source.git.commit": "git.revision", "git.dirty": "git.dirty"}


class RegisteredVersion(NamedTuple):
    """A version in the registry; ``model_uri`` loads it."""

    name: str
    version: int
    model_uri: str


def register(uri: str, run_id: str, content: BundleContent) -> RegisteredVersion:
    """Bundle a detector and register it as the next version of its name, linked to its run.

    The weights of a run have at most one version of a name, and one more for each choice of
    ``content.settings``. Registering them again, also after an attempt that was killed, completes
    or returns the existing version. A new version gets the alias
    ``candidate``. Metrics and data fingerprints become tags of
    the version, because those of a deleted run are lost. Raises UserError if the run was deleted.
    """
    name = content.name
    check_model_name(name)
    client = connect(uri)
    tags = _tags(content)
    version = _version_of_run(client, name, run_id, tags)
    if version is None:
        run = client.get_run(run_id)
        check_active(uri, run)
        origin = {**content.settings, **_origin(run)}
        model = _find_uploaded(client, run, name, tags) or _upload(
            client, run, content, origin, tags
        )
        _ensure_registered_model(client, name)
        tags |= {**origin, **{key: f"{value:.6g}" for key, value in content.metrics.items()}}
        if HASH_TAG in model.tags:
            tags[HASH_TAG] = model.tags[HASH_TAG]
        # Not models:/ID, which the registry would resolve in the process-wide store.
        version = client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            tags={**tags, MODEL_TAG: model.model_id},
            description=_description(content, origin),
        )
        client.set_registered_model_alias(name, CANDIDATE, version.version)
    # The database does not link the two; MLflow's pages use this tag.
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(version.tags[MODEL_TAG], {"mlflow.modelVersions": link})
    return RegisteredVersion(name, int(version.version), f"models:/{name}/{version.version}")


def find_registered(uri: str, content: BundleContent) -> RegisteredVersion | None:
    """Return the first version of a name with the same weights and settings, or None."""
    name, tags = content.name, _tags(content)
    check_model_name(name)
    found = connect(uri).search_model_versions(f"name='{name}'")
    numbers = [
        int(item.version)
        for item in found
        if WEIGHTS_TAG in item.tags and _is_same(item.tags, tags)
    ]
    number = min(numbers, default=None)
    return None if number is None else RegisteredVersion(name, number, f"models:/{name}/{number}")


def check_model_name(name: str, option: str = "registry.name") -> None:
    """Raise UserError, naming the option, if a name is not valid in ``models:/NAME/VERSION``."""
    if not name.strip() or set(name) & set("/:@'\"?#%"):
        raise UserError(f"{option} {name!r}: use letters, digits, '.', '_' and '-'")


def _version_of_run(
    client: MlflowClient, name: str, run_id: str, tags: Mapping[str, str]
) -> ModelVersion | None:
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    found = [item for item in versions if _is_same(item.tags, tags)]
    return max(found, key=lambda version: int(version.version), default=None)


def _tags(content: BundleContent) -> dict[str, str]:
    """Return the tags by which a version is found again."""
    tags = {WEIGHTS_TAG: tensors_sha256(content.weights)}
    if content.settings_sha256 is not None:
        tags[SETTINGS_TAG] = content.settings_sha256
    return tags


def _is_same(found: Mapping[str, str], tags: Mapping[str, str]) -> bool:
    """Return whether something registered has the weights and settings of these tags."""
    # Versions of earlier releases have no tag of weights: there was one for each run.
    same_weights = found.get(WEIGHTS_TAG, tags[WEIGHTS_TAG]) == tags[WEIGHTS_TAG]
    return same_weights and found.get(SETTINGS_TAG) == tags.get(SETTINGS_TAG)


def _find_uploaded(
    client: MlflowClient, run: Run, name: str, tags: Mapping[str, str]
) -> LoggedModel | None:
    """Return the model that an earlier attempt uploaded. Mark its incomplete ones as failed."""
    complete = None
    for model in client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    ):
        if model.tags.get(_NAME_TAG) != name or not _is_same(model.tags, tags):
            continue
        if model.status == "READY":
            complete = model
        elif model.status == "PENDING":
            client.finalize_logged_model(model.model_id, "FAILED")
    return complete


def _origin(run: Run) -> dict[str, str]:
    tags = run.data.tags
    origin = {"run_id": run.info.run_id}
    origin |= {new: tags[old] for old, new in _ORIGIN_TAGS.items() if old in tags}
    origin |= {key: tags[key] for key in sorted(tags) if key.startswith("data.")}
    return origin


def _upload(
    client: MlflowClient,
    run: Run,
    content: BundleContent,
    origin: dict[str, str],
    tags: Mapping[str, str],
) -> LoggedModel:
    from mlflow.entities import LoggedModelOutput

    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id,
        name="detector",
        source_run_id=run_id,
        tags={_NAME_TAG: content.name, **tags},
        params=_model_params(run),
        model_type="detector",
    )
    model_id: str = logged.model_id
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_bundle(content, origin, folder, run_id, model_id)
            digest = seal(folder)
            size = max(path.stat().st_size for path in folder.rglob("*"))
            with upload_timeout(size):
                client.log_model_artifacts(model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    note = {HASH_TAG: digest, "mlflow.note.content": _description(content, origin)}
    client.set_logged_model_tags(model_id, note)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    model = client.finalize_logged_model(model_id, "READY")
    _log_metrics(client, run, model_id, content.metrics)
    return model


def _model_params(run: Run) -> dict[str, str]:
    """Return the params of a run that describe its model."""
    params: dict[str, str] = run.data.params
    return {key: params[key] for key in sorted(params) if key.split(".")[0] in _MODEL_SECTIONS}


def _log_metrics(
    client: MlflowClient, run: Run, model_id: str, metrics: Mapping[str, float]
) -> None:
    """Link the metrics of a model to it and to the data set of each.

    MLflow stores them as metrics of the run as well, under names that the training does not use.
    """
    from mlflow.entities import Metric

    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = {
        tag.value: item.dataset
        for item in inputs
        for tag in item.tags
        if tag.key == "mlflow.data.context"
    }
    now = int(time.time() * 1000)
    points = []
    for name, value in metrics.items():
        dataset = datasets.get(name.split("/")[0])
        points.append(
            Metric(
                f"model/{name}",
                value,
                now,
                0,
                model_id=model_id,
                dataset_name=dataset.name if dataset else None,
                dataset_digest=dataset.digest if dataset else None,
                run_id=run.info.run_id,
            )
        )
    try:
        client.log_batch(run.info.run_id, metrics=points)
    except (
        Exception
    ) as error:  # the model is complete without them, and another attempt doubles them
        _LOG.warning("the metrics of the model could not be linked to it: %s", first_line(error))


def _description(content: BundleContent, origin: Mapping[str, str]) -> str:
    """Return the model card, cut to what the registry can store."""
    card = model_card(content, origin)
    if len(card) <= _MAX_DESCRIPTION:
        return card
    return f"{card[: _MAX_DESCRIPTION - len(_CUT)]}{_CUT}"


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
