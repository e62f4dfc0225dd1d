"""A small shard set of generated scenes and a configuration that trains on it in seconds."""

from pathlib import Path

import pytest

from jobs import prepare
from pipeline.config import Config
from tests.stores import new_store


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shard sets of 20 training and 6 held-out scenes of 64 px, by split."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count, seed in (("train", 20, 1), ("val", 6, 2), ("test", 6, 3)):
        prepare.main(
            [
                *("--source", "shapes", "--split", split, "--size", "64"),
                *("--count", str(count), "--seed", str(seed), "--out", str(folder / split)),
            ]
        )
    return {split: str(folder / split) for split in ("train", "val", "test")}


@pytest.fixture
def small(scenes: dict[str, str], tmp_path: Path) -> Config:
    """Return a config of two epochs of five steps at 64 px, without Ray, stored in ``tmp_path``."""
    return Config.from_dict(
        {
            "data": {**scenes, "loader_workers": 0},
            "model": {"image_size": 64},
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "log_every": 1,
                "warmup_steps": 2,
                "precision": "fp32",  # whatever the CPU computes in
            },
            "evaluate": {"batch_size": 4, "pictures": 2},
            "tracking": {"uri": new_store(tmp_path)},
            "registry": {"min_ap": None},  # two epochs may learn nothing
            "ray": {"enabled": False, "storage": str(tmp_path / "runs")},
        }
    )
