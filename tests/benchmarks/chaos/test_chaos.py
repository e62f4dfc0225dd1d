"""A short seeded run of the chaos benchmark: faults of several kinds change nothing."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# About 2.5 minutes on two cores; far longer under load.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1000)]

KINDS = "kill-rank,kill-loader,kill-driver,s3-refuse,mlflow-cut-response"


def test_faults_change_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", "--minutes", "1"]
    command += ["--seed", "1", "--gap", "6", "--kinds", KINDS]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()  # which stops its servers and nodes; a kill would not
        output, errors = process.communicate()
    assert process.returncode == 0, errors[-6000:]
    result = json.loads(output)
    assert result["passed"]
    assert {row["kind"] for row in result["faults"]} <= set(KINDS.split(","))
    assert len(result["faults"]) >= 3
    assert len(result["checks"]) >= 12
