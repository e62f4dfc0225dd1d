"""A short seeded run of the chaos benchmark: faults of several kinds change nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

KINDS = "kill-rank,kill-loader,kill-driver,s3-refuse,mlflow-cut-response"


def test_faults_change_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", "--minutes", "1"]
    command += ["--seed", "1", "--gap", "6", "--kinds", KINDS]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=580
    )
    result = json.loads(done.stdout) if done.stdout else {}
    assert done.returncode == 0, done.stderr[-6000:]
    assert result["passed"]
    assert {row["kind"] for row in result["faults"]} == set(KINDS.split(","))
    assert result["driver_exit_codes"]["-9"] >= 1
    assert all(check["passed"] for check in result["checks"])
    assert len(result["checks"]) >= 12
