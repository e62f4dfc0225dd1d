"""Making, continuing and closing one run: what the driver records once."""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import yaml

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking.provenance import git_state, machine, packages
from pipeline.tracking.store import artifact_root, connect, mask

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED"]
# The run's other sections change nothing about the result; they are in config.yaml.
_PARAM_SECTIONS = ("data", "model", "assign", "loss", "train", "evaluate", "ray")
_PARAM_LENGTH, _PARAMS_PER_CALL, _DIGEST_LENGTH = 6000, 100, 36


class DataSet(Protocol):
    """What a run needs to know of a manifest."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def content_hash(self) -> str:
        """Stands for what training sees."""


def create_run(
    uri: str,
    config: Config,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    dataset_manifests: Mapping[str, DataSet] | None = None,
) -> str:
    """Create the run and record config, revision, environment and data sets; returns its id.

    ``dataset_manifests`` maps the use (train, val, test) to the data set's manifest.
    """
    client = connect(uri)
    git = git_state()
    all_tags = {"mlflow.user": _user(), "git.dirty": str(git.dirty).lower(), **(tags or {})}
    if git.revision:
        all_tags["mlflow.source.git.commit"] = git.revision
    if git.branch:
        all_tags["mlflow.source.git.branch"] = git.branch
    if parent_run_id:
        all_tags["mlflow.parentRunId"] = parent_run_id
    for use, manifest in (dataset_manifests or {}).items():
        all_tags[f"data.{use}.fingerprint"] = manifest.content_hash
    experiment = _experiment(client, uri, config.tracking.experiment)
    run_id: str = client.create_run(experiment, tags=all_tags, run_name=run_name).info.run_id
    try:
        _record_config(client, run_id, config)
        _record_environment(client, run_id, git.diff)
        _record_data(client, run_id, config, dataset_manifests or {})
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    return run_id


def resume_run(uri: str, run_id: str) -> None:
    """Set an existing run to RUNNING again and count the resume in its tag ``resumes``."""
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise UserError(f"run {run_id} does not exist in {mask(uri)}") from None
    client.set_tag(run_id, "resumes", str(int(run.data.tags.get("resumes", "0")) + 1))
    client.update_run(run_id, status="RUNNING")


def finish_run(uri: str, run_id: str, status: Status = "FINISHED", timeout: float = 30.0) -> bool:
    """Close the run with its true end; warns and returns False if nobody answers in ``timeout`` s.

    The result of a training does not depend on a tracking server, so this never raises.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connect(uri).set_terminated(run_id, status)
            return True
        except Exception as error:
            if time.monotonic() > deadline:
                reason = mask(str(error)).splitlines()[0] if str(error) else type(error).__name__
                _LOG.warning("run %s ended as %s but cannot be closed: %s", run_id, status, reason)
                return False
            time.sleep(1.0)


def config_yaml(config: Config) -> str:
    """The whole config as a recipe, with the secrets in its URIs masked."""
    return yaml.safe_dump(_masked(config.model_dump(mode="json")), sort_keys=False)


def flat_params(config: Config) -> dict[str, str]:
    """Dotted config fields as MLflow params, without those the chosen assigner does not use."""
    tree = config.model_dump(mode="json", include=set(_PARAM_SECTIONS))
    tree["assign"] = _used_by_assigner(tree["assign"])
    params = {key: mask(_text(value)) for key, value in _flatten(tree)}
    return {key: value for key, value in params.items() if len(value) <= _PARAM_LENGTH}


def _used_by_assigner(assign: dict[str, Any]) -> dict[str, Any]:
    from model.assign import assigner_options

    used = {"name", *assigner_options(assign["name"])}
    return {key: value for key, value in assign.items() if key in used}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return mask(value) if isinstance(value, str) else value


def _record_config(client: MlflowClient, run_id: str, config: Config) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in flat_params(config).items()]
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_CALL])
    client.log_text(run_id, config_yaml(config), "config.yaml")


def _record_environment(client: MlflowClient, run_id: str, diff: str) -> None:
    client.log_text(run_id, packages(), "environment/packages.txt")
    client.log_text(run_id, json.dumps(machine(), indent=2), "environment/machine.json")
    if diff:
        client.log_text(run_id, diff, "environment/uncommitted.diff")


def _record_data(
    client: MlflowClient, run_id: str, config: Config, manifests: Mapping[str, DataSet]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for use, manifest in manifests.items():
        source = mask(str(getattr(config.data, use, None) or ""))
        dataset = Dataset(
            name=manifest.name,
            digest=manifest.content_hash[:_DIGEST_LENGTH],
            source_type="shards",
            source=json.dumps({"uri": source}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", use)]))
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(name, artifact_location=artifact_root(uri))
            return created
        except MlflowException:
            # Another driver made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment {name!r} was deleted; restore it or choose another name"
        )
    identifier: str = found.experiment_id
    return identifier


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
