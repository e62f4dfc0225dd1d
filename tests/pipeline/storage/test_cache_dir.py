"""The cache folder, with and without a usable home."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.shards.cache import ShardCache
from pipeline.storage.cache_dir import user_cache


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def test_cache_follows_xdg_cache_home_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("weights") == tmp_path / "home/.cache/guidance-train/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "given"))
    assert user_cache("weights") == tmp_path / "given/guidance-train/weights"
    assert ShardCache().folder == tmp_path / "given/guidance-train/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/relative")
    assert user_cache("weights") == tmp_path / "home/.cache/guidance-train/weights"
    assert ShardCache("~/elsewhere").folder == tmp_path / "home/elsewhere"


def test_unreadable_home_falls_back_to_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, stat = tmp_path / "root", os.stat
    home.mkdir()

    def closed(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{home}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home)
    assert user_cache("shards").is_relative_to(tmp_path / "temporary")


@pytest.mark.parametrize("home", ["/dev/null", "unknown"])
def test_missing_home_falls_back_to_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    folder = ShardCache().folder
    assert folder.is_relative_to(tmp_path / "temporary") and folder.name == "shards"
