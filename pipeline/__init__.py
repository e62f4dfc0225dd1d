"""Everything around the model: configuration, data, training, evaluation, tracking, sweeps.

Importing the package sets environment variables that Ray and MLflow read when they are imported or
started. Variables that are already set keep their values. Ray and MLflow send no usage reports and
print only warnings and errors. Lines of Ray workers appear as they were printed, without process
id. Authentication is explicitly off, since Ray would otherwise enable tokens without being asked.
Workers of a cluster that is started here run at normal priority: at Ray's niceness of 15 each
wake-up of Ray's own processes interrupts a rank, which made steps a tenth slower.
"""

import os

# Warnings of Ray about events that are normal here: a trial that a sweep has stopped early.
HIDDEN_LINES = "Detected that the Ray Train controller actor"

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    # Ray's filter for repeated lines of workers: hide these, and never drop any other.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": HIDDEN_LINES,
    "RAY_DEDUP_LOGS_ALLOW_REGEX": f"^(?!.*{HIDDEN_LINES})",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
