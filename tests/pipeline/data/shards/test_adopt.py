"""Test the adoption of tars in the format of shards: same bytes, a manifest, or every fault."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from jobs import shards
from pipeline.config import Config
from pipeline.data import build_train_loader, load_manifest
from pipeline.data.shards.adopt import adopt
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.shards.verify import verify
from pipeline.errors import UserError

CLASSES = ["circle", "square"]


def sample_json(number: int, **other: Any) -> dict[str, Any]:
    """Return the JSON of a sample of 40x30 pixels with one box."""
    return {
        "image_id": str(number),
        "file_name": f"{number}.jpg",
        "width": 40,
        "height": 30,
        "boxes": [[1.5, 2.0, 20.0, 30.0]],
        "labels": [number % 2],
        "difficult": [False],
        "crowd": [False],
        "area": [518.0],
        **other,
    }


@pytest.fixture
def written(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """Return a folder of three tars that webdataset's own writer wrote, with its defaults."""
    folder = tmp_path / "written"
    folder.mkdir()
    pattern = str(folder / "mine-%02d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number in range(10):
            content = {"jpg": encode(), "json": sample_json(number)}
            writer.write({"__key__": f"{number:04d}", **content})
    return folder


def tar_of(path: Path, files: dict[str, bytes], **options: Any) -> None:
    """Write a tar with these members."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_of_webdataset_become_a_shard_set(written, make_config):
    before = {path: path.read_bytes() for path in written.iterdir()}
    with tarfile.open(next(iter(before))) as tar:
        assert tar.getmembers()[0].pax_headers.keys() == {"mtime"}
    manifest, faults = adopt(str(written), CLASSES, split="val")
    assert faults == [] and manifest == load_manifest(written)
    assert [shard.samples for shard in manifest.shards] == [4, 4, 2]
    assert (manifest.name, manifest.split, manifest.boxes) == ("written", "val", 10)
    assert manifest.boxes_per_class == {"circle": 5, "square": 5}
    assert {path: path.read_bytes() for path in before} == before
    assert verify(str(written)).faults == []
    raw = ShardSet(written).read(9)
    assert (raw.fault, Sample.from_json(raw.json).image_id) == ("", "9")
    config: Config = make_config(**{"train.batch_size": 5, "train.epochs": 1})
    batches = list(build_train_loader(str(written), config, 0, 1))
    assert sorted(i for batch in batches for i in batch.image_ids) == [str(i) for i in range(10)]


def test_adopted_set_equals_the_converted_one(scenes, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(scenes, bare, ignore=shutil.ignore_patterns("*.index", "manifest.json"))
    converted = load_manifest(scenes)
    adopted, faults = adopt(str(bare), converted.classes)
    assert faults == [] and adopted is not None
    assert adopted.fingerprint == converted.fingerprint
    assert adopted.content_hash == converted.content_hash
    for path in Path(scenes).glob("*.index"):
        assert (bare / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"a.json": b"{}", "a.jpg": b""}, "'a.json' is in the place of an image"),
        ({"a.jpg": b"", "b.jpg": b""}, "'a.jpg' is followed by 'b.jpg' instead of a.json"),
        ({"a.jpg": b"", "a.cls": b"3"}, "'a.jpg' is followed by 'a.cls' instead of a.json"),
        ({"a.jpg": b""}, "'a.jpg' is not followed by a.json"),
        ({"x/a.jpg": b"", "x/a.json": b"{}"}, "member name 'x/a.jpg' is not KEY.jpg"),
        ({"a.jpg": b"", "a.json": b'{"boxes": []}'}, "bad a: damaged JSON: "),
        ({"a.jpg": b"", "a.json": json.dumps(sample_json(0)).encode()}, "bad a: empty file"),
        (
            {"a.jpg": b"", "a.json": json.dumps(sample_json(0, labels=[2])).encode()},
            "label 2 is not one of the 2 classes",
        ),
        ({}, "a shard has one or more samples (it has none)"),
        ({"é" * 120 + ".jpg": b""}, "sets the path of a member; write the tar in the format ustar"),
    ],
)
def test_tar_that_does_not_fit_is_rejected_with_the_reason(tmp_path, files, fault):
    tar_of(tmp_path / "bad.tar", files)
    manifest, faults = adopt(str(tmp_path), CLASSES)
    assert manifest is None
    assert any(fault.replace("bad a", "bad.tar a") in line for line in faults), faults
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_sample_in_two_tars_and_other_name_are_faults(written):
    shutil.copy(written / "mine-00.tar", written / "mine-03.tar")
    shutil.copy(written / "mine-00.tar", written / "mine 04.tar")
    _, faults = adopt(str(written), CLASSES)
    assert "mine-03.tar 0001: image_id '1' is also in mine-00.tar 0001" in faults
    assert any(fault.startswith("mine 04.tar: a shard has") for fault in faults)


def test_not_a_tar_is_rejected(written):
    (written / "mine-01.tar").write_bytes(b"<html>" * 200)
    assert adopt(str(written), CLASSES).faults == ["mine-01.tar: damaged header at byte 0"]


def test_check_stops_after_many_faults(tmp_path, encode):
    wrong = json.dumps(sample_json(0, labels=[9])).encode()
    files = {
        f"{n}.{end}": data for n in range(200) for end, data in (("jpg", b""), ("json", wrong))
    }
    tar_of(tmp_path / "a.tar", files)
    assert 100 <= len(adopt(str(tmp_path), CLASSES).faults) < 110


def test_job_reports_faults_and_then_adopts(written, capsys):
    for arguments in (["--classes", "circle"], ["--classes", "a,a"], []):
        with pytest.raises(UserError) as caught:
            shards.main(["adopt", str(written), *arguments])
    assert "--classes" in str(caught.value)
    fault = r"not in the format of shards; .*: 5 faults\n.*label 1 is not one of the 1 classes"
    with pytest.raises(UserError, match=fault):
        shards.main(["adopt", str(written), "--classes", "circle"])
    result = shards.main(["adopt", str(written), "--classes", "circle,square", "--name", "x"])
    assert (result["samples"], result["shards"]) == (10, 3)
    assert "now a shard set: 10 samples in 3 shards" in capsys.readouterr().out
    with pytest.raises(UserError, match="already a shard set"):
        shards.main(["adopt", str(written), "--classes", "circle,square"])
    shards.main(["adopt", str(written), "--classes", "a,b", "--overwrite"])
    assert load_manifest(written).classes == ["a", "b"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{folder}", "contains no .tar files"),
        ("{folder}/none", "no such directory"),
        ("https://example.invalid/set", "a manifest cannot be written there"),
        ("https://user:secret@example.invalid/set", "credentials do not belong in a URI"),
    ],
)
def test_place_without_shards_is_rejected(tmp_path, uri, message):
    with pytest.raises(UserError, match=message):
        adopt(uri.format(folder=tmp_path), CLASSES)


@pytest.mark.integration
def test_tars_in_an_object_store_are_adopted(written, s3_bucket, tmp_path):
    client, bucket = s3_bucket
    for path in written.iterdir():
        client.upload_file(str(path), bucket, f"set/{path.name}")
    before = {
        item["Key"]: item["ETag"]
        for item in client.list_objects_v2(Bucket=bucket, Prefix="set/")["Contents"]
    }
    uri = f"s3://{bucket}/set"
    manifest, faults = adopt(uri, CLASSES)
    assert faults == [] and verify(uri).faults == []
    after = {
        item["Key"]: item["ETag"]
        for item in client.list_objects_v2(Bucket=bucket, Prefix="set/")["Contents"]
    }
    assert after.items() >= before.items() and len(after) == 8
    assert manifest is not None
    assert manifest.content_hash == adopt(str(written), CLASSES).manifest.content_hash
    read = ShardSet(uri, ShardCache(tmp_path / "cache")).read(5)
    assert Sample.from_json(read.json).image_id == "5" and not read.fault
    assert np.frombuffer(read.image, np.uint8).size > 100
