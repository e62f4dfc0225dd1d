"""The beginning of a run: what is known of it before any store has heard of it, and its making.

A beginning is plain JSON with a key of its own, which becomes the run's tag ``run.key``. Making the
run looks for the key first, so that a driver that dies half-way, an answer that is lost, or several
processes that send the same spool end with one run.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tracking.client import artifact_root, connect, mask
from pipeline.tracking.provenance import git_state, machine, packages

if TYPE_CHECKING:
    from mlflow import MlflowClient

Beginning = dict[str, Any]
KEY = "run.key"
_PARAMS_PER_CALL, _DIGEST_LENGTH = 100, 36
# The run's other sections change nothing about the result; they are in config.yaml.
_PARAM_SECTIONS = ("data", "model", "assign", "loss", "train", "evaluate", "ray")
_PARAM_LENGTH = 6000


class DataSet(Protocol):
    """What a run needs to know of a manifest."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def content_hash(self) -> str:
        """Stands for what training sees."""


def describe(
    config: Config,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    dataset_manifests: Mapping[str, DataSet] | None = None,
) -> Beginning:
    """Name, tags, params, data sets and files of a run that begins now; without secrets.

    ``dataset_manifests`` maps the use (train, val, test) to the data set's manifest.
    """
    git, manifests = git_state(), dataset_manifests or {}
    all_tags = {"mlflow.user": _user()}
    if git.dirty is not None:
        all_tags["git.dirty"] = str(git.dirty).lower()
    if git.revision:
        all_tags["mlflow.source.git.commit"] = git.revision
    if git.branch:
        all_tags["mlflow.source.git.branch"] = git.branch
    if parent_run_id:
        all_tags["mlflow.parentRunId"] = parent_run_id
    for use, manifest in manifests.items():
        all_tags[f"data.{use}.fingerprint"] = manifest.content_hash
    files = {
        "config.yaml": config_yaml(config),
        "environment/packages.txt": packages(),
        "environment/machine.json": json.dumps(machine(), indent=2),
    }
    if git.diff:
        files["environment/uncommitted.diff"] = git.diff
    beginning = {
        "time": time.time_ns() // 1_000_000,
        "experiment": config.tracking.experiment,
        "name": run_name,
        "tags": {**all_tags, **(tags or {})},
        "params": flat_params(config),
        "data": [
            {
                "use": use,
                "name": manifest.name,
                "digest": manifest.content_hash[:_DIGEST_LENGTH],
                "uri": mask(str(getattr(config.data, use, None) or "")),
            }
            for use, manifest in manifests.items()
        ],
        "files": files,
    }
    return with_key(beginning, uuid.uuid4().hex)


def with_key(beginning: Beginning, key: str) -> Beginning:
    """The beginning of the run with this key."""
    return {**beginning, "key": key, "tags": {**beginning["tags"], KEY: key}}


def begin_run(uri: str, beginning: Beginning) -> str:
    """Make the run of a beginning, or complete the one that exists already; returns its id."""
    client = connect(uri)
    experiment = _experiment(client, uri, beginning["experiment"])
    run_id = find_run(client, beginning["key"], [experiment])
    if run_id is None:
        made = client.create_run(
            experiment, beginning["time"], beginning["tags"], run_name=beginning["name"]
        )
        run_id = str(made.info.run_id)
    else:
        client.update_run(run_id, status="RUNNING")
    try:
        _record(client, run_id, beginning)
    except BaseException:
        with contextlib.suppress(Exception):  # the store may be what failed
            client.set_terminated(run_id, "FAILED")
        raise
    return run_id


def find_run(client: MlflowClient, key: str, experiments: list[str] | None = None) -> str | None:
    """The id of the run with this key, looked for in all experiments unless some are given."""
    if experiments is None:
        experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{KEY}` = '{key}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _record(client: MlflowClient, run_id: str, beginning: Beginning) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    params = [Param(key, value) for key, value in beginning["params"].items()]
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_CALL])
    for path, text in beginning["files"].items():
        client.log_text(run_id, text, path)
    inputs = []
    for item in beginning["data"]:
        source = json.dumps({"uri": item["uri"]})
        dataset = Dataset(
            name=item["name"], digest=item["digest"], source_type="shards", source=source
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", item["use"])]))
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
