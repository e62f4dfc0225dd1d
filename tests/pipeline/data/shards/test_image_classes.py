"""The classes of each image beside a manifest: written, checked, and added to earlier sets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import shards as job
from pipeline.data.shards import image_classes
from pipeline.data.shards.adopt import adopt
from pipeline.data.shards.image_classes import (
    classes_file,
    encode_image,
    parse_image_classes,
    read_image_classes,
)
from pipeline.data.shards.manifest import load_manifest, write_manifest
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.shards.shard_table import IMAGE_CLASSES
from pipeline.data.shards.verify import verify
from pipeline.data.sources.record import Object, ParsedImage, Record, Source
from pipeline.errors import UserError

FORMAT_1 = Path(__file__).parents[3] / "artifacts/shard_set_format_1"


@pytest.fixture
def folder(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "set"))


def make_older(folder: Path) -> None:
    """Make a set one of format 4."""
    (folder / IMAGE_CLASSES).unlink()
    tree = json.loads((folder / "manifest.json").read_text())
    del tree["image_classes"]
    (folder / "manifest.json").write_text(json.dumps({**tree, "format_version": 4}))


@pytest.mark.parametrize("classes", [1, 3, 65_535, 65_536, 100_000])
def test_classes_of_images_are_read_as_written(classes):
    images = [[classes - 1], [], sorted({0, classes - 1}), [0], []]
    data = b"".join(encode_image(labels, classes) for labels in images)
    assert len(data) == (5 + sum(map(len, images))) * (2 if classes < 65_536 else 4)
    labels, starts = parse_image_classes(data, classes, 5)
    found = [row.tolist() for row in np.split(labels, starts[1:])]
    assert found == [[*row, classes] for row in images]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode_image([0], 3)[:3], "is truncated"),
        (encode_image([0], 3), "has 1 images, the manifest says 2"),
        (encode_image([0], 3) + encode_image([3], 3), "has labels beyond the 3 classes"),
        (2 * encode_image([], 3) + b"\0\0", "has 2 images, the manifest says 2"),
        (b"", "has 0 images"),
    ],
)
def test_content_of_another_set_is_rejected(data, message):
    with pytest.raises(ValueError, match=message):
        parse_image_classes(data, 3, 2)


def test_converted_set_has_the_classes_of_its_samples(scenes):
    manifest, shards = load_manifest(scenes), ShardSet(scenes)
    assert manifest.image_classes is not None
    data = read_image_classes(scenes, manifest.image_classes, 0)
    labels, starts = parse_image_classes(data, 5, 23)
    samples = [parse_sample(shards.read_json(index), 5) for index in range(23)]
    rows = [row.tolist() for row in np.split(labels, starts[1:])]
    assert rows == [[*sorted(set(sample.labels)), 5] for sample in samples]
    assert len({tuple(row) for row in rows}) > 5


def test_crowd_regions_do_not_count(tmp_path, encode, convert_source):
    objects = [
        [Object("cat", (0, 0, 9, 9), crowd=True), Object("dog", (0, 0, 9, 9), difficult=True)],
        [Object("cat", (0, 0, 9, 9), crowd=True)],
    ]
    images = [
        ParsedImage(Record(str(i), f"{i}.jpg", encode(), "a", None, each))
        for i, each in enumerate(objects)
    ]
    convert_source(Source("x", "coco", ["cat", "dog"], images, 2), tmp_path / "set")
    assert (tmp_path / "set" / IMAGE_CLASSES).read_bytes() == (
        encode_image([1], 2) + encode_image([], 2)
    )
    assert verify(str(tmp_path / "set")).faults == []


def test_adopted_set_has_the_same_file(scenes, tmp_path):
    bare = shutil.copytree(scenes, tmp_path / "bare", ignore=shutil.ignore_patterns("[im]*"))
    manifest, _ = adopt(str(bare), load_manifest(scenes).classes)
    assert manifest is not None
    assert manifest.image_classes == load_manifest(scenes).image_classes
    assert (bare / IMAGE_CLASSES).read_bytes() == (Path(scenes) / IMAGE_CLASSES).read_bytes()


def test_verification_reports_a_missing_changed_and_wrong_file(folder):
    path, manifest = folder / IMAGE_CLASSES, load_manifest(folder)
    data = path.read_bytes()
    path.unlink()
    assert verify(str(folder)).faults == [
        f"{path}: missing, but the manifest lists it; copy it again"
    ]
    path.write_bytes(data[:-2])
    (fault,) = verify(str(folder)).faults
    assert fault.startswith(f"{path}: sha256 ")
    wrong = encode_image([], 5) + data[:-2]
    path.write_bytes(wrong)
    write_manifest(manifest.model_copy(update={"image_classes": classes_file(wrong)}), folder)
    assert verify(str(folder)).faults == [f"{IMAGE_CLASSES}: does not match the samples"]


def test_upgrade_of_an_earlier_set_gives_the_same_files(folder, scenes, capsys):
    make_older(folder)
    before = load_manifest(folder)
    assert before.image_classes is None and verify(str(folder)).faults == []
    result = job.main(["upgrade", str(folder)])
    assert result["content_hash"] == before.content_hash and result["samples"] == 23
    assert "has the classes of 23 images" in capsys.readouterr().out
    assert verify(str(folder)).faults == []
    for name in (IMAGE_CLASSES, "manifest.json"):
        assert (folder / name).read_bytes() == (Path(scenes) / name).read_bytes()


def test_upgrade_of_format_1_keeps_its_problems(tmp_path):
    folder = shutil.copytree(FORMAT_1, tmp_path / "set")
    before = load_manifest(folder)
    assert before.problem_counts
    job.main(["upgrade", str(folder)])
    after = load_manifest(folder)
    assert after.problem_counts == before.problem_counts and after.image_classes
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 5
    assert verify(str(folder)).faults == []


def test_upgrade_leaves_a_damaged_set_as_it_is(folder):
    make_older(folder)
    tar, before = folder / "shard-000001.tar", (folder / "manifest.json").read_bytes()
    tar.write_bytes(tar.read_bytes().replace(b'"labels"', b'"lebals"'))
    with pytest.raises(UserError, match=r"shard-000001\.tar sample 0: damaged JSON.*shards verify"):
        job.main(["upgrade", str(folder)])
    assert (folder / "manifest.json").read_bytes() == before
    assert not (folder / IMAGE_CLASSES).exists()


def test_upgrade_over_http_is_rejected(folder, monkeypatch):
    monkeypatch.setattr(image_classes, "ShardSet", lambda uri: ShardSet(folder))
    with pytest.raises(UserError, match="nothing can be written there; upgrade the set in its"):
        job.main(["upgrade", "https://example.invalid/set"])


@pytest.mark.integration
def test_set_in_an_object_store_is_upgraded_and_read(folder, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = (folder / IMAGE_CLASSES).read_bytes()
    make_older(folder)
    client, bucket = s3_bucket
    for path in folder.iterdir():
        client.upload_file(str(path), bucket, f"set/{path.name}")
    uri = f"s3://{bucket}/set"
    job.main(["upgrade", uri])
    assert verify(uri).faults == []
    entry = load_manifest(uri).image_classes
    assert entry is not None and read_image_classes(uri, entry, 0) == expected
    client.put_object(Bucket=bucket, Key=f"set/{IMAGE_CLASSES}", Body=expected[:-1] + b"x")
    with pytest.raises(UserError, match=f"{IMAGE_CLASSES}: its sha256 is"):
        read_image_classes(uri, entry, 0)
