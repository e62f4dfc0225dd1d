"""Test shards: plain tars with an index, read by position, robust against damaged files."""

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.data.shards.manifest import load_manifest
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.shards.verify import verify
from pipeline.data.shards.writer import ShardWriter, index_path
from pipeline.errors import UserError


@pytest.fixture
def copy(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "copy"))


def test_limits_start_new_shards(tmp_path):
    writer = ShardWriter(tmp_path, max_samples=3, max_bytes=8000)
    for size in (10, 10, 10, 10, 3000, 10, 9000):
        writer.add("jpg", b"x" * size, b"{}")
    assert [s.samples for s in writer.close()] == [3, 2, 1, 1]


def test_shard_is_a_plain_tar_without_times_or_owners(scenes):
    with tarfile.open(Path(scenes) / "shard-000001.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:4]] == [
        "000000005.jpg",
        "000000005.json",
        "000000006.jpg",
        "000000006.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_webdataset_reads_shards(scenes):
    tars = sorted(str(path) for path in Path(scenes).glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    shards = ShardSet(scenes)
    assert len(samples) == len(shards) == 23
    for i, sample in enumerate(samples):
        raw = shards.read(i)
        assert (sample["jpg"], sample["json"]) == (raw.image, raw.json)


def test_shard_is_what_webdataset_writes_except_for_padding_and_the_place_of_a_png(tmp_path):
    for extension in ("jpg", "png"):
        writer = ShardWriter(tmp_path, 10, 10**6)
        with (tmp_path / "theirs.tar").open("wb") as file:
            options = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "encoder": False}
            with webdataset.TarWriter(file, **options) as theirs:
                for number in range(3):
                    writer.add(extension, b"i" * 700, b"{}")
                    content = {extension: b"i" * 700, "json": b"{}"}
                    theirs.write({"__key__": f"{number:09d}", **content})
        writer.close()
        own, other = ((tmp_path / name).read_bytes() for name in ("shard-000000.tar", "theirs.tar"))
        assert len(other) % 10240 == 0 < len(own) % 10240
        if extension == "jpg":
            assert other == own + bytes(len(other) - len(own))
        else:
            assert other[:9] == own[:9] and other[10:13] == b"jso" and own[10:13] == b"png"


def test_hashes_and_sizes_match_the_files(scenes):
    for shard in load_manifest(scenes).shards:
        data = (Path(scenes) / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)


def test_samples_are_read_in_any_order(scenes):
    shards = ShardSet(scenes)
    ids = {i: Sample.from_json(shards.read(i).json).image_id for i in (22, 0, 7, 5, 4)}
    assert ids == {i: f"train-0-{i:06d}" for i in ids}


def test_shard_set_can_be_pickled_after_use(scenes):
    shards = ShardSet(scenes)
    first = shards.read(3)
    assert pickle.loads(pickle.dumps(shards)).read(3) == first  # noqa: S301 - our own bytes


def test_open_files_are_limited(scenes, monkeypatch):
    monkeypatch.setattr("pipeline.data.shards.reader.MAX_OPEN_SHARDS", 2)
    shards = ShardSet(scenes)
    expected = [ShardSet(scenes).read(i) for i in range(23)]
    assert [shards.read(i) for i in range(23)] == expected
    assert len(shards._open) == 2


def test_shard_set_without_samples_is_rejected(copy):
    manifest = load_manifest(copy)
    empty = manifest.model_copy(update={"samples": 0, "shards": []})
    (copy / "manifest.json").write_text(empty.model_dump_json())
    for use in (ShardSet, load_manifest, verify):
        with pytest.raises(UserError, match="has no samples; convert the data again"):
            use(copy)


@pytest.mark.parametrize("suffix", [".tar", ".index"])
def test_missing_file_is_reported_at_the_start(copy, suffix):
    (copy / f"shard-000002{suffix}").unlink()
    with pytest.raises(UserError, match=f"shard-000002{suffix}: missing"):
        ShardSet(copy)


def test_index_of_another_length_is_reported_at_the_start(copy):
    shutil.copy(copy / "shard-000004.index", copy / "shard-000001.index")
    with pytest.raises(UserError, match=r"shard-000001\.index: does not match the manifest"):
        ShardSet(copy)


def test_truncated_tar_causes_a_warning_and_lost_samples(copy, caplog):
    whole = [ShardSet(copy).read(i) for i in range(23)]
    path = copy / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shards = ShardSet(copy)
    assert "shard-000002.tar has" in caplog.text
    got = [shards.read(i) for i in range(23)]
    assert got[:10] == whole[:10] and got[15:] == whole[15:]
    assert got[10] == whole[10] and got[14] == ShardSet(copy).read(14) != whole[14]


def test_index_rows_outside_the_file_read_nothing(copy):
    path = index_path(copy / "shard-000000.tar")
    rows = np.fromfile(path, "<i8").reshape(-1, 4)
    rows[0, 0], rows[1, 1], rows[2, 3] = -1, 2**62, 2**40
    rows.tofile(path)
    shards = ShardSet(copy)
    assert [shards.read(i)[:2] for i in range(3)] == [(b"", b"")] * 3
    assert shards.read(3).image
