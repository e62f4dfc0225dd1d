"""The experiment to which runs about a version belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.tracking.client import artifact_root
from pipeline.tracking.run_spec import EXPERIMENT_TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def experiment_of(client: MlflowClient, version: ModelVersion | None, default: str) -> str:
    """Return the id of the experiment of a version's training.

    Without a version, and if that run was deleted, it is the experiment named ``default``, which is
    created if it does not exist. Raises MlflowException.
    """
    from mlflow.exceptions import MlflowException

    if version is not None and version.run_id:
        try:
            run = client.get_run(version.run_id)
            if run.info.lifecycle_stage == "active":
                return str(run.info.experiment_id)
        except MlflowException:
            pass  # the run was deleted for good
    found = client.get_experiment_by_name(default)
    if found is not None:
        return str(found.experiment_id)
    # Without a location MLflow would use the working directory for a database.
    root = artifact_root(client.tracking_uri, None)
    return str(client.create_experiment(default, artifact_location=root, tags=EXPERIMENT_TAGS))
