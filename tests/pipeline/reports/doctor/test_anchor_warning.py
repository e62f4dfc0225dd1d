"""The warning at the start of a training."""

from pathlib import Path

import pytest

from jobs import prepare
from pipeline.config import Config
from pipeline.data.shards.reader import ShardSet
from pipeline.reports.doctor import anchor_warning as module
from pipeline.reports.doctor.anchor_warning import anchor_warning


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Return a set of 20 scenes of 64 px, whose objects are mostly below 17 px."""
    folder = str(tmp_path_factory.mktemp("set") / "set")
    prepare.main(["--source", "shapes", "--count", "20", "--size", "64", "--out", folder])
    return ShardSet(folder)


def test_anchors_that_do_not_fit_are_named_with_better_ones(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = anchor_warning(shards, Config.from_dict({"model": {"image_size": 64}}))
    assert warning is not None
    assert "no anchor with an IoU of 0.5 or more (base 24 px" in warning
    assert "20 images" in warning and " % with base 1" in warning
    monkeypatch.setattr(module, "SAMPLES", 5)
    few = anchor_warning(shards, Config.from_dict({"model": {"image_size": 64}}))
    assert few is not None and "5 images" in few


def test_anchors_that_fit_are_silent(shards: ShardSet) -> None:
    assert anchor_warning(shards, Config.from_dict({"model": {"image_size": 320}})) is None


def test_remote_and_damaged_sets_are_left_to_the_loader(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.from_dict({"model": {"image_size": 64}})
    monkeypatch.setattr(shards, "remote", True)
    assert anchor_warning(shards, config) is None
    monkeypatch.setattr(shards, "remote", False)
    (Path(shards.uri) / "shard-000000.tar").write_bytes(b"")
    assert anchor_warning(ShardSet(shards.uri), config) is None
