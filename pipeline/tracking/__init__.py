"""The MLflow run: created by the driver, logged to by rank 0, without ever delaying training."""

import os

# MLflow reads these when it is first imported, so they are set before any module here imports it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Set whatever the environment says: MLflow's own retries repeat also requests that took effect and
# whose response was lost, and so create a run twice. Here, a search comes before a request that
# must take effect once, and unsent records stay in the spool.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
# The default is 120 s.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from pipeline.storage.redact import mask
from pipeline.tracking.client import (
    RunDeletedError,
    check_active,
    connect,
    experiment_of,
    resolve_run_store,
    resolve_uri,
    visible_here,
    wait_for_store,
)
from pipeline.tracking.cluster_load import ClusterLoad
from pipeline.tracking.run import create_run, finish_run, history_tag, resolve_run_id, resume_run
from pipeline.tracking.run_spec import RunSpec, config_yaml
from pipeline.tracking.spool.offline_runs import (
    discard_run_spec,
    load_run_spec,
    save_run_spec,
    spool_folder,
)
from pipeline.tracking.sync import sync
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.upload import is_rejected, upload_timeout

__all__ = [
    "ClusterLoad",
    "RunDeletedError",
    "RunSpec",
    "Tracker",
    "check_active",
    "config_yaml",
    "connect",
    "create_run",
    "discard_run_spec",
    "experiment_of",
    "finish_run",
    "history_tag",
    "is_rejected",
    "load_run_spec",
    "mask",
    "resolve_run_id",
    "resolve_run_store",
    "resolve_uri",
    "resume_run",
    "save_run_spec",
    "spool_folder",
    "sync",
    "upload_timeout",
    "visible_here",
    "wait_for_store",
]
