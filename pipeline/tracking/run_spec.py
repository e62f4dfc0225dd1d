"""The spec of a run: everything recorded when it is created, and the idempotent creation.

A spec is written before the run exists and has an idempotency key, which becomes the run's tag
``run.key``. Creation first searches for the key. A driver that dies, a response that is lost, or
several processes that send the same spool therefore end with one run.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from model.options import assigner_options
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.storage.document import Document
from pipeline.storage.redact import mask, mask_tree
from pipeline.tracking.client import artifact_root, connect, exclusive_writes
from pipeline.tracking.provenance import GitState, git_state, installed_packages, machine_info
from pipeline.tracking.upload import is_rejected, keep_rejected, rejection

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_LOG = logging.getLogger(__name__)
KEY_TAG = "run.key"
HISTORY_TAG = "history."  # followed by the time of an event
# MLflow's pages show such an experiment as the training of models, not as one of GenAI.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_PARAMS_PER_CALL, _DIGEST_LENGTH = 100, 36
# The other sections do not change the result; they are in config.yaml.
_PARAM_SECTIONS = ("data", "model", "assign", "loss", "train", "evaluate", "ray")
_MAX_PARAM_LENGTH = 6000


class DatasetManifest(Protocol):
    """The parts of a manifest that a run records."""

    @property
    def name(self) -> str:
        """Return the name of the data set."""

    @property
    def content_hash(self) -> str:
        """Return the fingerprint of the content that training reads."""


class DatasetSpec(BaseModel):
    """A data set as the run records it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: str = Field(description="train, val or test")
    name: str
    digest: str
    uri: str


class RunSpec(Document):
    """What is recorded when a run is created, without secrets."""

    FORMAT_VERSION = 2  # 1 had no artifacts

    time: int = Field(description="milliseconds since 1970")
    experiment: str
    artifacts: str | None = Field(
        default=None, description="where a new experiment stores its artifacts, if that is stated"
    )
    name: str | None
    key: str = Field(description="idempotency key, also the tag run.key")
    tags: dict[str, str]
    params: dict[str, str]
    data: list[DatasetSpec]
    files: dict[str, str] = Field(description="text artifacts by path")

    def with_key(self, key: str) -> Self:
        """Return the same spec with another idempotency key."""
        return self.model_copy(update={"key": key, "tags": {**self.tags, KEY_TAG: key}})

    def same_inputs(self, other: RunSpec) -> bool:
        """Return whether both specs have the same params and data sets."""
        return self.params == other.params and self.data == other.data


def build_run_spec(
    config: Config,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    dataset_manifests: Mapping[str, DatasetManifest] | None = None,
) -> RunSpec:
    """Return the spec of a run that is created now.

    ``dataset_manifests`` maps the use (train, val, test) to the data set's manifest.
    """
    git, manifests = git_state(), dataset_manifests or {}
    key = uuid.uuid4().hex
    return RunSpec(
        time=time.time_ns() // 1_000_000,
        experiment=config.tracking.experiment,
        artifacts=config.tracking.artifacts,
        name=run_name,
        key=key,
        tags={
            **_provenance_tags(git, parent_run_id, manifests),
            **{name: mask(value) for name, value in (tags or {}).items()},
            KEY_TAG: key,
        },
        params=flat_params(config),
        data=[
            DatasetSpec(
                use=use,
                name=manifest.name,
                digest=manifest.content_hash[:_DIGEST_LENGTH],
                uri=mask(str(getattr(config.data, use, None) or "")),
            )
            for use, manifest in manifests.items()
        ],
        files=_environment_files(config, git),
    )


def ensure_run(uri: str, spec: RunSpec, spool: Path | None = None) -> str:
    """Create the run of a spec, or complete it if it already exists. Return its id.

    Files that the server rejects are kept in the ``spool`` folder, if there is one.
    """
    client = connect(uri)
    with exclusive_writes(uri):
        return _ensured(client, uri, spec, spool)


def _ensured(client: MlflowClient, uri: str, spec: RunSpec, spool: Path | None) -> str:
    experiment = _experiment_id(client, uri, spec)
    run_id = find_run(client, spec.key, [experiment])
    if run_id is None:
        created = client.create_run(experiment, spec.time, spec.tags, run_name=spec.name)
        run_id = str(created.info.run_id)
    elif not any(key.startswith(HISTORY_TAG) for key in client.get_run(run_id).data.tags):
        # An earlier attempt failed. A run with a history may have ended while this machine still
        # had records of it.
        client.update_run(run_id, status="RUNNING")
    try:
        _record(client, run_id, spec, spool)
    except BaseException:
        with contextlib.suppress(Exception):  # the store itself may have failed
            client.set_terminated(run_id, "FAILED")
        raise
    return run_id


def find_run(client: MlflowClient, key: str, experiments: list[str] | None = None) -> str | None:
    """Return the id of the run with this key. Search all experiments unless some are given."""
    if experiments is None:
        experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def config_yaml(config: Config) -> str:
    """Return the whole configuration as a recipe, with its secrets masked.

    Rates that follow the optimizer are given as numbers.
    """
    following = {"model": config.model.recorded(), "train": config.train.recorded()}
    tree = {**config.model_dump(mode="json"), **following}
    return yaml.safe_dump(mask_tree(tree), sort_keys=False)


def flat_params(config: Config) -> dict[str, str]:
    """Return MLflow params by dotted field, without those that the chosen assigner ignores."""
    tree = config.model_dump(mode="json", include=set(_PARAM_SECTIONS))
    tree["assign"] = _used_by_assigner(config.assign.recorded())
    tree["loss"] = config.loss.options(config.assign.name)
    tree["model"], tree["train"] = config.model.recorded(), config.train.recorded()
    # Names in a value, such as those of classes, may have characters that MLflow's keys may not.
    params = {
        f"{section}.{name}": mask(_text(value))
        for section, fields in tree.items()
        for name, value in fields.items()
    }
    return {key: value for key, value in params.items() if len(value) <= _MAX_PARAM_LENGTH}


def _provenance_tags(
    git: GitState, parent_run_id: str | None, manifests: Mapping[str, DatasetManifest]
) -> dict[str, str]:
    tags = {"mlflow.user": _user()}
    if git.dirty is not None:
        tags["git.dirty"] = str(git.dirty).lower()
    if git.revision:
        tags["mlflow.source.git.commit"] = git.revision
    if git.branch:
        tags["mlflow.source.git.branch"] = git.branch
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    for use, manifest in manifests.items():
        tags[f"data.{use}.fingerprint"] = manifest.content_hash
    return tags


def _environment_files(config: Config, git: GitState) -> dict[str, str]:
    files = {
        "config.yaml": config_yaml(config),
        "environment/packages.txt": installed_packages(),
        "environment/machine.json": json.dumps(machine_info(), indent=2),
    }
    if git.diff:
        files["environment/uncommitted.diff"] = mask(git.diff)
    return files


def _record(client: MlflowClient, run_id: str, spec: RunSpec, spool: Path | None) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in spec.params.items()]
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_CALL])
    if spec.data:
        client.log_inputs(run_id, datasets=[_dataset_input(dataset) for dataset in spec.data])
    for path, text in spec.files.items():
        try:
            client.log_text(run_id, text, path)
        except Exception as error:  # artifact stores raise errors of many types
            if not is_rejected(error):
                raise
            kept = keep_rejected(spool, path, text) if spool else None
            _LOG.warning("%s", rejection(run_id, path, error, kept))


def _dataset_input(dataset: DatasetSpec) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": dataset.uri})
    return DatasetInput(
        Dataset(name=dataset.name, digest=dataset.digest, source_type="shards", source=source),
        [InputTag("mlflow.data.context", dataset.use)],
    )


def _experiment_id(client: MlflowClient, uri: str, spec: RunSpec) -> str:
    """Return the id of the experiment. Create it if it does not exist.

    Raises UserError if it was deleted or stores its artifacts elsewhere.
    """
    from mlflow.exceptions import MlflowException

    name, root = spec.experiment, artifact_root(uri, spec.artifacts)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(
                name, artifact_location=root, tags=EXPERIMENT_TAGS
            )
            return created
        except MlflowException:
            # Another driver may have created it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment {name!r} was deleted; restore it or choose another name"
        )
    location = str(found.artifact_location)
    if spec.artifacts is not None and location.rstrip("/") != str(root).rstrip("/"):
        raise UserError(
            f"tracking.experiment {name!r} stores its artifacts in {mask(location)}, not in "
            f"tracking.artifacts {mask(spec.artifacts)}; choose another experiment, or set "
            "tracking.artifacts to that location"
        )
    identifier: str = found.experiment_id
    return identifier


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "unknown"


def _used_by_assigner(assign: dict[str, Any]) -> dict[str, Any]:
    used = {"name", *assigner_options(assign["name"])}
    return {key: value for key, value in assign.items() if key in used}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
