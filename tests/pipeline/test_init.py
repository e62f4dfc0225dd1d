"""The environment that importing the package sets for Ray and MLflow."""

import os
import re
import subprocess
import sys

import pytest

from pipeline import DEFAULTS, HIDDEN_LINES

SKIP = DEFAULTS["RAY_DEDUP_LOGS_SKIP_REGEX"]
KEEP = DEFAULTS["RAY_DEDUP_LOGS_ALLOW_REGEX"]


@pytest.mark.parametrize("line", ["", "step 2: val ap 0.007", "    raise ValueError(text)"])
def test_lines_of_workers_are_always_kept(line: str) -> None:
    # Ray prints a line that the first pattern matches without looking for repetitions.
    assert re.search(KEEP, line)


def test_warning_about_a_stopped_trial_is_hidden() -> None:
    line = f"2026-01-01 WARNING cleaner.py:120 -- {HIDDEN_LINES} (dccc1f3a) is dead."
    assert not re.search(KEEP, line)
    assert re.search(SKIP, line)


def test_variables_of_the_user_are_left_alone() -> None:
    code = "import os, pipeline; print(os.environ['RAY_DEDUP_LOGS'], os.environ['DO_NOT_TRACK'])"
    environment = {**os.environ, "RAY_DEDUP_LOGS": "0"}
    environment.pop("DO_NOT_TRACK", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "0 true\n"
