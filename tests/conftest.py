"""Fixtures and environment of all tests."""

import os
from pathlib import Path

# Set before torch and Ray are imported: each test does little work, and none sends telemetry.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the directory of real data and golden values beside the checkout, or skip the test."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("../shared not found")
    return path
