"""Secrets in text that leaves the process."""

import subprocess
import sys
import time

import pytest

from pipeline.storage.redact import MAX_LENGTH, error_line, first_line, mask, mask_tree
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
        ("models:/shapes@champion", "models:/shapes@champion"),
        ("s3:/AKIA7:ab/c@bucket", "s3:/AKIA7:***@bucket"),
        ("s3://AKIA7:ab/c+d/e=@bucket/key", "s3://AKIA7:***@bucket/key"),
        ("http://me:pw@host/a@b", "http://me:***@host/a@b"),
        ("mssql+pyodbc://h/db?driver=x&pwd=S3", "mssql+pyodbc://h/db?driver=x&pwd=***"),
        ("mysql://h/db?passwd=S3&x=1", "mysql://h/db?passwd=***&x=1"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3DS3",
            "mssql+pyodbc:///?odbc_connect=***",
        ),
        ("DRIVER%3DX%3BPWD%3DS3%3BUID%3Dme", "DRIVER%3DX%3BPWD%3D***%3BUID%3Dme"),
        ("DRIVER={X};UID=me;PWD=S3;DB=d", "DRIVER={X};UID=me;PWD=***;DB=d"),
        ("Server=h;Password={S;3};DB=d", "Server=h;Password=***;DB=d"),
        ("host=h user=me password=S3 dbname=d", "host=h user=me password=*** dbname=d"),
        ("AccountName=n;AccountKey=ab/c==;X=y", "AccountName=n;AccountKey=***;X=y"),
        (
            "SharedAccessKeyName=n;SharedAccessKey=ab=",
            "SharedAccessKeyName=n;SharedAccessKey=***",
        ),
        ("+AWS_SECRET_ACCESS_KEY=ab/cd+ef", "+AWS_SECRET_ACCESS_KEY=***"),
        ("+export DB_PASSWORD='S 3'", "+export DB_PASSWORD='***'"),
        ('+    password = "S3"  # of the test', '+    password = "***"  # of the test'),
        ('{"dbPassword": "S\\"3", "user": "me"}', '{"dbPassword": "***", "user": "me"}'),
        ("-  api_key: S3\n+  api_key: S4", "-  api_key: ***\n+  api_key: ***"),
        ("Authorization: Basic bWU6UzM=", "Authorization: Basic ***"),
        ("{'Authorization': 'Bearer S3cret'}", "{'Authorization': 'Bearer ***'}"),
        ("curl -H 'X: bearer S3cretS3cret'", "curl -H 'X: bearer ***'"),
        (f"git clone with ghp_{'a1' * 18}", "git clone with ***"),
        (f"eyJ{'a' * 20}.eyJ{'b' * 20}.c-_c is expired", "*** is expired"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nab\ncd\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
        ("    token: str | None = None", "    token: str | None = None"),
        ("max_tokens=512, key=len", "max_tokens=512, key=len"),
        ("access denied (using password: YES)", "access denied (using password: YES)"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token"),
    ],
)
def test_mask_hides_only_secrets(text: str, expected: str) -> None:
    assert mask(text) == expected
    assert mask(expected) == expected


def test_mask_tree_masks_strings_at_any_depth_and_fields_named_as_secrets() -> None:
    tree = {"a": [{"uri": "http://me:S3@h"}, ("x", 1)], "db_password": "S3", "token": None}
    masked = {"a": [{"uri": "http://me:***@h"}, ["x", 1]], "db_password": "***", "token": None}
    assert mask_tree(tree) == masked


@pytest.mark.parametrize(
    "unit", ["a", "://", "://a:", "://a:b/", ":/a:", "password", "password=", "?key", "eyJa", "'\\"]
)
def test_masking_a_long_line_takes_linear_time(unit: str) -> None:
    text = (unit * 200_000)[:200_000]
    began = time.process_time()
    mask(text)
    assert time.process_time() - began < 2


OUTPUT = """
import logging
from pipeline.storage.redact import mask_output

mask_output()
logging.warning("cannot reach %s", "http://me:S3cret@host")
try:
    raise OSError("http://me:S3cret@inner")
except OSError as error:
    logging.exception("failed")
    raise RuntimeError("password=S3cret") from error
"""


def test_mask_output_masks_log_records_and_tracebacks() -> None:
    done = subprocess.run([sys.executable, "-c", OUTPUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "S3cret" not in done.stderr
    assert "cannot reach http://me:***@host" in done.stderr
    assert done.stderr.count("OSError: http://me:***@inner") == 2
    assert done.stderr.endswith("RuntimeError: password=***\n")


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
