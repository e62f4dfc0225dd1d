"""Shard sets for jobs that train."""

from pathlib import Path

import pytest

from jobs import prepare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        prepare.main(
            [
                *("--source", "shapes", "--split", split, "--count", "16", "--size", "64"),
                *("--out", str(tmp_path / "shards" / f"shapes-{split}")),
            ]
        )
    return tmp_path
