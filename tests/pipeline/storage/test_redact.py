"""Secrets in text that leaves the process."""

import subprocess
import sys

import pytest

from pipeline.storage.redact import MAX_LENGTH, error_line, first_line, mask
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host:5000/a", "http://host:5000/a"),
        (
            "see http://me:pw@host, http://you:p:w@host",
            "see http://me:***@host, http://you:***@host",
        ),
        ("https://token@host/x.git", "https://***@host/x.git"),
        ("postgresql+psycopg2://u:p@ss@db:5432/m", "postgresql+psycopg2://u:***@db:5432/m"),
        ("s3://b/k?X-Amz-Signature=abc&v=1", "s3://b/k?X-Amz-Signature=***&v=1"),
        ("https://host/w?token=secret'", "https://host/w?token=***'"),
        ("mail me@host.org", "mail me@host.org"),
    ],
)
def test_mask_hides_only_secrets(text: str, expected: str) -> None:
    assert mask(text) == expected


def test_error_line_is_one_short_line_without_queries() -> None:
    error = OSError("GET http://me:secret@host/a?code=secret\n failed,  because of\tthis")
    assert error_line(error) == "GET http://me:***@host/a?... failed, because of this"
    assert error_line(ValueError()) == "ValueError"
    assert len(error_line(ValueError("x" * 1000))) == MAX_LENGTH


def test_first_line_leaves_out_the_other_lines() -> None:
    error = ValueError("no such table in http://me:secret@host\n[SQL: SELECT 1]")
    assert first_line(error) == "no such table in http://me:***@host"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.storage.redact",
        "pipeline.storage.durable",
        "pipeline.storage.lock",
        "pipeline.storage.checksum",
        "pipeline.progress",
    ],
)
def test_helpers_import_none_of_the_heavy_packages(module: str) -> None:
    heavy = ("mlflow", "ray", "torch", "numpy", "pyarrow", "fsspec", "urllib3")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
