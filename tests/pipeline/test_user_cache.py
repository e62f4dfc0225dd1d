"""Where what can be had again is kept, whatever home the user has."""

from pathlib import Path

import pytest

from pipeline.data.cache import ShardCache
from pipeline.user_cache import user_cache


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def test_it_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("weights") == tmp_path / "home/.cache/guidance-train/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "given"))
    assert user_cache("weights") == tmp_path / "given/guidance-train/weights"
    assert ShardCache().folder == tmp_path / "given/guidance-train/shards"
    assert ShardCache("~/elsewhere").folder == tmp_path / "home/elsewhere"


@pytest.mark.parametrize("home", ["/dev/null", "unknown"])
def test_a_user_without_a_home_has_one_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    folder = ShardCache().folder
    assert folder.is_relative_to(tmp_path / "temporary") and folder.name == "shards"
