"""The MLflow run: made by the driver, written by rank 0, never in the way of training."""

import os

# Read by MLflow when it is first imported, so set before anything here imports it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The defaults are 7 tries of 120 s each. What cannot be sent waits in a spool, and what must
# not be done twice is looked for before it is tried again, which a repeated request would not do.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from pipeline.tracking.client import connect, mask, resolve_uri, wait_for_store
from pipeline.tracking.run import create_run, finish_run, history, known_run_id, resume_run
from pipeline.tracking.run_spec import config_yaml
from pipeline.tracking.spool.offline_runs import forget_beginning, spool_folder
from pipeline.tracking.sync import sync
from pipeline.tracking.tracker import Tracker

__all__ = [
    "Tracker",
    "config_yaml",
    "connect",
    "create_run",
    "finish_run",
    "forget_beginning",
    "history",
    "known_run_id",
    "mask",
    "resolve_uri",
    "resume_run",
    "spool_folder",
    "sync",
    "wait_for_store",
]
