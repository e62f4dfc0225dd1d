"""What a training that Ray Train has ended says about the reason."""

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.distributed.ray_private_api import lost_worker_errors
from pipeline.training.error_hints import LOST_PROCESS
from pipeline.training.ray_backend.launch import _failure
from pipeline.training.run_record import RunRecord

HealthCheckFailed = lost_worker_errors()[1]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            HealthCheckFailed("see below", ActorDiedError()),
            f"its process {LOST_PROCESS}",
        ),
        (ActorDiedError(), f"its process {LOST_PROCESS}"),
        (RuntimeError("Traceback:\n  x\ndisk full"), "disk full"),
    ],
)
def test_failure_of_a_worker_is_one_line(tmp_path: Path, failure: Exception, reason: str) -> None:
    error = WorkerGroupError("failed", {1: failure})
    found = _failure(error, RunRecord(str(tmp_path), "run"))
    assert str(found) == f"rank 1 failed: {reason}"
