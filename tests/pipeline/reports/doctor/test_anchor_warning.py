"""The warning at the start of a training."""

import re
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


def test_small_objects_get_the_base_that_fits(tmp_path: Path) -> None:
    limits = ["--object-sides", "6,14", "--max-objects", "12"]
    folder = str(tmp_path / "small")
    prepare.main(["--source=shapes", "--count=30", "--size=128", *limits, "--out", folder])
    shards, tree = ShardSet(folder), {"image_size": 128}
    warning = anchor_warning(shards, Config.from_dict({"model": tree}))
    assert warning is not None and warning.startswith("100 % of the objects have no anchor")
    assert "the others are small: a larger model.image_size fits more; see" in warning
    found = re.search(r": (\d+) % with model\.anchor_base ([\d.]+); (\d+) % with base", warning)
    assert found is not None and int(found[3]) < int(found[1]) < 60
    # With that base alone, as many objects are without an anchor as the warning says.
    own = anchor_warning(shards, Config.from_dict({"model": {**tree, "anchor_base": found[2]}}))
    assert own is not None and own.startswith(f"{found[1]} % of the objects have no anchor")
    assert "model.anchor_base" not in own
    assert anchor_warning(shards, Config.from_dict({"model": {"image_size": 640}})) is None


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
