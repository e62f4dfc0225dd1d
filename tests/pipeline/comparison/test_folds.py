"""Folds of a shard set: every sample in one part, near duplicates together, nothing changed."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.comparison import folds as module
from pipeline.comparison.folds import fold_splits, partition
from pipeline.config import Config
from pipeline.data.shards.manifest import Manifest, load_manifest, write_manifest
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample, Tile
from pipeline.data.shards.verify import verify
from pipeline.data.shards.writer import ShardWriter
from pipeline.errors import UserError


def picture(seed: int) -> bytes:
    """Return a JPEG of random blocks, which looks like no other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    pixels = cv2.resize(blocks, (72, 72), interpolation=cv2.INTER_NEAREST)
    return bytes(cv2.imencode(".jpg", pixels)[1])


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """Return a set of 12 samples: two are the same image, two are tiles of one picture."""
    folder = tmp_path / "whole"
    folder.mkdir()
    writer = ShardWriter(folder, 5, 2**30)
    for number in range(12):
        tile = Tile("large", 72 * number, 0, 400, 72) if number in (4, 9) else None
        sample = Sample.make(
            image_id=f"i{number}",
            file_name=f"{number}.jpg",
            width=72,
            height=72,
            boxes=[] if number == 3 else [[1, 2, 30, 40], [5, 5, 9, 9]],
            labels=[] if number == 3 else [0, 1],
            difficult=[] if number == 3 else [True, False],
            crowd=[] if number == 3 else [False, number == 2],
            area=[] if number == 3 else [1000.0, 16.0],
            tile=tile,
        )
        writer.add("jpg", picture(1 if number == 7 else number), sample.to_json())
    write_manifest(
        Manifest(
            name="whole",
            split="train",
            source="test",
            fingerprint="f",
            classes=["a", "b"],
            samples=12,
            samples_without_objects=1,
            boxes=22,
            boxes_per_class={"a": 11, "b": 11},
            shards=writer.close(),
            problem_counts={},
            crowd_boxes=1,
        ),
        folder,
    )
    return str(folder)


def contents(uri: str) -> dict[str, tuple[bytes, bytes]]:
    """Return the image and the JSON of each sample by image id."""
    shards = ShardSet(uri)
    found = [shards.read(index) for index in range(len(shards))]
    return {Sample.from_json(raw.json).image_id: (bytes(raw.image), raw.json) for raw in found}


def test_parts_have_every_sample_once_and_unchanged(whole: str, tmp_path: Path) -> None:
    config = Config.from_dict({"data": {"train": whole}})
    splits = fold_splits(config, load_manifest(whole), 3, str(tmp_path / "run"))
    everything = contents(whole)
    held_out: dict[str, tuple[bytes, bytes]] = {}
    for split in splits:
        assert split.params is not None
        train, val = (contents(split.params[f"data.{use}"]) for use in ("train", "val"))
        assert not train.keys() & val.keys() and {**train, **val} == everything
        assert {"i1", "i7"} <= val.keys() or not {"i1", "i7"} & val.keys()
        assert {"i4", "i9"} <= val.keys() or not {"i4", "i9"} & val.keys()
        assert 3 <= len(val) <= 5
        held_out |= val
        for use in ("train", "val"):  # counts, keys, crowds and classes are those of the samples
            uri = split.params[f"data.{use}"]
            assert verify(uri).faults == []
            manifest = load_manifest(uri)
            assert manifest.crowd_boxes == ("i2" in (train if use == "train" else val))
            assert manifest.classes == ["a", "b"]
    assert held_out == everything
    assert len({split.content for split in splits}) == 3


def test_parts_do_not_depend_on_the_order_of_samples() -> None:
    hashes = [bytes([number]) * 16 for number in (3, 60, 85, 102, 153, 204, 240, 15, 51)]
    names = [str(number) for number in range(len(hashes))]
    parts = partition(hashes, names, 3)
    assert sorted(map(len, parts)) == [3, 3, 3]
    shuffled = [4, 2, 8, 0, 6, 1, 3, 7, 5]
    others = partition([hashes[k] for k in shuffled], [names[k] for k in shuffled], 3)
    assert sorted(sorted(shuffled[k] for k in part) for part in others) == sorted(parts)


def test_sets_are_made_once_and_repaired(
    whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = Config.from_dict({"data": {"train": whole}}), str(tmp_path / "run")
    first = fold_splits(config, load_manifest(whole), 2, run)
    written = []
    write = module._write_sets
    monkeypatch.setattr(module, "_write_sets", lambda *a: (written.append(1), write(*a)))
    assert fold_splits(config, load_manifest(whole), 2, run) == first and not written
    assert first[0].params is not None
    shard = Path(first[0].params["data.val"]) / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 255
    shard.unlink()
    shard.write_bytes(data)
    assert fold_splits(config, load_manifest(whole), 2, run) == first and written == [1]
    assert not [path for path in (tmp_path / "run" / "folds").iterdir() if "folds-" in path.name]


def test_more_folds_than_images_are_refused(whole: str, tmp_path: Path) -> None:
    config = Config.from_dict({"data": {"train": whole}})
    words = "--folds 11: data.train has 12 samples, of 10 images that look different"
    with pytest.raises(UserError, match=words):
        fold_splits(config, load_manifest(whole), 11, str(tmp_path / "run"))


def test_storage_with_options_is_refused(whole: str) -> None:
    config = Config.from_dict({"data": {"train": whole}})
    words = r"s3://b/runs\?region=x: --folds stores shard sets there"
    with pytest.raises(UserError, match=words):
        fold_splits(config, load_manifest(whole), 2, "s3://b/runs?region=x")
