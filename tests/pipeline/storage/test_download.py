"""One file from protocols other than http and https."""

import hashlib
from pathlib import Path

import fsspec
import pytest

from pipeline.storage.download import download_file
from pipeline.storage.http_client import TooLargeError

CONTENT = bytes(range(256)) * 10_000


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "source").write_bytes(CONTENT)
    return f"local://{tmp_path}/source"


def test_file_is_copied_and_its_sha256_returned(source: str, tmp_path: Path) -> None:
    found = download_file(source, tmp_path / "copy", len(CONTENT))
    assert found == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("protocol", ["local", "memory"])
def test_too_large_file_is_rejected(source: str, tmp_path: Path, protocol: str) -> None:
    if protocol == "memory":  # this client reports its progress, the other one does not
        source = "memory://source"
        fsspec.filesystem("memory").pipe_file("/source", CONTENT)
    with pytest.raises(TooLargeError, match="more than the expected 1000 bytes"):
        download_file(source, tmp_path / "copy", 1000)


def test_missing_file_and_unknown_protocol_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        download_file(f"local://{tmp_path}/absent", tmp_path / "copy")
    with pytest.raises(ValueError, match="not known"):
        download_file("nothing://host/file", tmp_path / "copy")
