"""What carries the model: configuration, data, training, evaluation, tracking, registry, sweeps.

Importing it sets the environment that Ray and MLflow read when they are imported or started:
no usage reports, no doubled prints, and an explicit authentication mode, since Ray would otherwise
turn token authentication on behind the user's back. Workers of a cluster that is started here run
at the priority of other programs: at Ray's niceness of 15 every wake-up of its own processes
interrupts a rank, and steps took a tenth longer. Whatever is set already is left alone.
"""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
