"""Weights by URL from a local server: checked, cached, and never cached incomplete."""

import threading
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import OutageError, UserError
from pipeline.pretrained import download as module
from pipeline.pretrained.download import download, weights_cache
from pipeline.storage.download import download_file
from tests.pipeline.pretrained.weights_server import CONTENT, SHA256, Server


def cached_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_file_is_downloaded_once_and_cached_by_its_sha256(server: Server, tmp_path: Path) -> None:
    first = download(server.url(), SHA256, tmp_path)
    assert first.read_bytes() == CONTENT
    assert cached_names(tmp_path) == [f"{SHA256}.pth"]
    assert download(server.url("elsewhere.pth"), SHA256.upper(), tmp_path) == first
    assert server.requests == 1


def test_file_has_the_given_name_in_the_cache(server: Server, tmp_path: Path) -> None:
    path = download(server.url(), SHA256, tmp_path, name="resnet.pth")
    assert cached_names(tmp_path) == [path.name] == ["resnet.pth"]
    assert download(server.url(), SHA256, tmp_path, name="resnet.pth") == path
    assert server.requests == 1


def test_name_with_the_start_of_the_hash_is_kept(server: Server, tmp_path: Path) -> None:
    name = f"net-{SHA256[:8]}.pth"
    (tmp_path / f"{SHA256}.pth").write_bytes(CONTENT)  # of an earlier version
    assert download(server.url(name), SHA256, tmp_path).name == f"{SHA256}.pth"
    (tmp_path / f"{SHA256}.pth").unlink()
    assert download(server.url(name), SHA256, tmp_path).name == name
    assert download(server.url("net-00000000.pth"), SHA256, tmp_path).name == f"{SHA256}.pth"
    assert download(server.url(f"net-{SHA256[:4]}.pth"), SHA256, tmp_path).stem == SHA256
    assert server.requests == 2


def test_damaged_cache_entry_is_replaced(server: Server, tmp_path: Path) -> None:
    path = download(server.url(), SHA256, tmp_path)
    path.write_bytes(b"bit rot")
    assert download(server.url(), SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == 2


def test_other_content_is_rejected_and_not_cached(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has sha256 {SHA256}, not the expected {'0' * 64}"):
        download(server.url(), "0" * 64, tmp_path)
    assert cached_names(tmp_path) == []


@pytest.mark.parametrize("answer", ["whole", "unmeasured"])
def test_too_large_file_is_rejected_and_not_cached(
    server: Server, tmp_path: Path, answer: str
) -> None:
    server.answers = [answer]
    with pytest.raises(UserError, match="larger than the limit of 5000 bytes$"):
        download(server.url(), SHA256, tmp_path, max_bytes=5000)
    assert cached_names(tmp_path) == []


@pytest.mark.parametrize("failures", [["cut"], ["503"], ["cut", "500"]])
def test_transient_failure_is_retried(server: Server, tmp_path: Path, failures: list[str]) -> None:
    server.answers = list(failures)
    assert download(server.url(), SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == len(failures) + 1


def test_final_failure_is_not_retried(server: Server, tmp_path: Path) -> None:
    server.answers = ["404"]
    with pytest.raises(UserError, match=r"weights\.pth cannot be downloaded: status 404"):
        download(server.url(), SHA256, tmp_path)
    assert (server.requests, cached_names(tmp_path)) == (1, [])


def test_retries_are_limited(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut"] * 5
    with pytest.raises(OutageError, match="cannot be downloaded"):
        download(server.url(), SHA256, tmp_path)
    assert (server.requests, cached_names(tmp_path)) == (module.RETRIES + 1, [])


def test_concurrent_downloads_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=download, args=(server.url(), SHA256, tmp_path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (server.requests, cached_names(tmp_path)) == (1, [f"{SHA256}.pth"])


def test_failure_is_one_line_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.remote.FIRST_DELAY_SECONDS", 0.01)
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        download("http://me:secret@127.0.0.1:9/w.pth", SHA256, tmp_path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_of_shard_sets_are_not_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe may name any host."""
    headers = {"headers": {"Authorization": "Bearer secret"}}
    monkeypatch.setitem(fsspec.config.conf, "http", headers)
    download_file(server.url(), tmp_path / "shard")
    assert server.authorization == "Bearer secret"
    download(server.url(), SHA256, tmp_path)
    assert server.authorization is None


def test_unwritable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="weights cannot be cached there"):
        download("http://127.0.0.1:9/w.pth", SHA256, tmp_path / "file")


def test_cache_follows_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_cache().is_relative_to(tmp_path)
