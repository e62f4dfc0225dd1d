"""Test shards with one fault each: reported by verification, masked and counted in training."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import build_train_loader
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.manifest import Shard, load_manifest
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.verify import verify
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError
from pipeline.storage.checksum import file_sha256

BLOCK = 512
SHARD = "shard-000001.tar"  # holds samples 5 to 9


@pytest.fixture
def folder(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "set"))


def rows_of(folder: Path) -> np.ndarray:
    return np.fromfile((folder / SHARD).with_suffix(".index"), "<i8").reshape(-1, 4)


def overwrite(folder: Path, at: int, data: bytes) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.seek(at)
        file.write(data)


def rename(folder: Path, at: int, name: str) -> None:
    """Rename the member whose data are at byte ``at``, with a correct checksum."""
    with (folder / SHARD).open("rb") as file:
        file.seek(at - BLOCK)
        header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "strict")
    header.name = name
    overwrite(folder, at - BLOCK, header.tobuf(tarfile.USTAR_FORMAT))


def truncate(folder: Path, at: int) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(at)


def set_json(folder: Path, row: int, **changes) -> None:
    """Replace fields of a sample's JSON without changing its size."""
    at, size = rows_of(folder)[row, 2:]
    tree = json.loads((folder / SHARD).read_bytes()[at : at + size])
    tree = {**tree, **changes, "file_name": ""}
    text = json.dumps(tree, separators=(",", ":")).encode()
    assert len(text) <= size
    overwrite(folder, at, text.ljust(size))


def truncated_in_a_member(folder):
    truncate(folder, rows_of(folder)[3, 0] + 100)


def truncated_between_members(folder):
    truncate(folder, rows_of(folder)[3, 0] - BLOCK)


def damaged_header(folder):
    overwrite(folder, rows_of(folder)[2, 0] - BLOCK + 3, b"\xff")


def wrong_size_in_a_header(folder):
    overwrite(folder, rows_of(folder)[2, 0] - BLOCK + 124, b"77777777777\0")


def missing_json(folder):
    rename(folder, rows_of(folder)[2, 2], "000000007.txt")


def json_of_another(folder):
    rename(folder, rows_of(folder)[2, 2], "000000009.json")


def json_without_a_field(folder):
    set_json(folder, 2, boxes=None)


def box_outside(folder):
    set_json(
        folder, 2, boxes=[[0, 0, 9, 97]], labels=[0], difficult=[False], crowd=[False], area=[1]
    )


def nan_coordinate(folder):
    nan = [[0, float("nan"), 9, 9]]
    set_json(folder, 2, boxes=nan, labels=[0], difficult=[False], crowd=[False], area=[1])


def infinite_area(folder):
    set_json(
        folder,
        2,
        boxes=[[0, 0, 9, 9]],
        labels=[0],
        difficult=[False],
        crowd=[False],
        area=[float("inf")],
    )


def parent_in_a_name(folder):
    rename(folder, rows_of(folder)[2, 0], "../../000000007.jpg")


def absolute_name(folder):
    rename(folder, rows_of(folder)[2, 0], "/etc/000000007.jpg")


def link_member(folder):
    at = rows_of(folder)[2, 0]
    header = tarfile.TarInfo("000000007.jpg")
    header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
    overwrite(folder, at - BLOCK, header.tobuf(tarfile.USTAR_FORMAT))


def shifted_index(folder):
    rows = rows_of(folder)
    rows[2] += (BLOCK, -BLOCK, 0, 0)
    rows.tofile((folder / SHARD).with_suffix(".index"))


def crossed_index(folder):
    rows = rows_of(folder)
    rows[2, 2:] = rows[3, 2:]
    rows.tofile((folder / SHARD).with_suffix(".index"))


def repeated_row(folder):
    rows = rows_of(folder)
    rows[2] = rows[1]
    rows.tofile((folder / SHARD).with_suffix(".index"))


def repeated_rows(folder):
    rows = rows_of(folder)
    rows[2:4] = rows[0:2]
    rows.tofile((folder / SHARD).with_suffix(".index"))


def negative_index(folder):
    rows = rows_of(folder)
    rows[2, 1] = -5
    rows.tofile((folder / SHARD).with_suffix(".index"))


FAULTS = [
    # damage, message of the verification, message of the training, lost samples
    (
        truncated_in_a_member,
        "inside member '000000008.jpg'",
        "shard-000001.tar is truncated at",
        [8, 9],
    ),
    (
        truncated_between_members,
        "its end marker is missing",
        "shard-000001.tar is truncated at",
        [8, 9],
    ),
    (damaged_header, "damaged header at byte", "damaged header at byte", [7]),
    (wrong_size_in_a_header, "its checksum is wrong", "its checksum is wrong", [7]),
    (missing_json, "instead of 000000007.json", "is paired with '000000007.txt'", [7]),
    (json_of_another, "instead of 000000007.json", "is paired with '000000009.json'", [7]),
    (json_without_a_field, "got `null` - at `$.boxes`", "damaged JSON: ", [7]),
    (box_outside, "is empty or extends beyond the", "or extends beyond the image", [7]),
    (nan_coordinate, "malformed: invalid character", "malformed: invalid character", [7]),
    (infinite_area, "malformed: invalid character", "malformed: invalid character", [7]),
    (parent_in_a_name, "member name '../../000000007.jpg'", "'../../000000007.jpg' is not", [7]),
    (absolute_name, "member name '/etc/000000007.jpg'", "'/etc/000000007.jpg' is not", [7]),
    (link_member, "'000000007.jpg' is not a regular", "'000000007.jpg' is not a regular", [7]),
    (shifted_index, "shard-000001.index: does not match", "damaged header at byte", [7]),
    (crossed_index, "shard-000001.index: does not match", "is paired with", [7]),
    (repeated_row, "shard-000001.index: does not match", "points to 000000006 twice", [7]),
    (repeated_rows, "shard-000001.index: does not match", "points to 00000000", [7, 8]),
    (negative_index, "shard-000001.index: does not match", "its index does not match", [7]),
]


@pytest.mark.parametrize(
    ("damage", "verified", "trained", "lost"), FAULTS, ids=[row[0].__name__ for row in FAULTS]
)
def test_fault_is_reported_and_affects_no_other_sample(
    folder, scenes, make_config, damage, verified, trained, lost
):
    damage(folder)
    assert any(verified in fault for fault in verify(str(folder)).faults)
    config = make_config(**{"train.epochs": 1, "train.batch_size": 23})
    (whole,) = build_train_loader(scenes, config, 0, 1)
    loader = build_train_loader(str(folder), config, 0, 1)
    (batch,) = loader
    for i, image_id in enumerate(whole.image_ids):
        good = int(image_id.rsplit("-")[-1]) not in lost
        assert bool(batch.valid[i]) == good
        assert bool((batch.images[i] == whole.images[i]).all()) == good
    assert len(loader.bad.problems) == len(lost)
    assert all("shard-000001.tar sample" in p and trained in p for p in loader.bad.problems)


def test_index_that_points_to_a_later_sample_loses_one_sample(folder, scenes):
    whole, rows = ShardSet(scenes), rows_of(folder)
    rows[2] = rows[4]
    rows.tofile((folder / SHARD).with_suffix(".index"))
    shards = ShardSet(folder)
    found = [shards.read(i) for i in range(len(shards))]
    faults = {i: raw.fault for i, raw in enumerate(found) if raw.fault}
    assert faults == {9: "its index points to 000000009 twice and does not match " + SHARD}
    expected = [whole.read(i).image for i in range(len(whole))]
    expected[7] = expected[9]
    assert [raw.image for raw in found] == expected


def test_repeated_key_is_reported_and_does_not_affect_reading(folder, scenes, make_config):
    for column in (0, 2):
        at = rows_of(folder)[2, column]
        rename(folder, at, f"000000006.{'json' if column else 'jpg'}")
    twice = "shard-000001.tar 000000006: the key is also in shard-000001.tar"
    found = verify(str(folder))
    assert twice in found.faults and found.samples == 23
    assert not any("manifest.json" in fault for fault in found.faults)
    config = make_config(**{"train.epochs": 1})
    for whole, batch in zip(
        build_train_loader(scenes, config, 0, 1),
        build_train_loader(str(folder), config, 0, 1),
        strict=True,
    ):
        assert batch.valid.all() and bool((batch.images == whole.images).all())


def test_key_of_another_shard_is_reported(folder):
    for column in (0, 2):
        at = rows_of(folder)[0, column]
        rename(folder, at, f"000000001.{'json' if column else 'jpg'}")
    faults = verify(str(folder)).faults
    assert "shard-000001.tar 000000001: the key is also in shard-000000.tar" in faults


def test_counts_hashes_and_files_are_compared(folder):
    tree = json.loads((folder / "manifest.json").read_text())
    tree["boxes"] += 1
    tree["boxes_per_class"]["star"] += 1
    tree["shards"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(tree))
    shutil.copy(folder / SHARD, folder / "shard-000099.tar")
    faults = verify(str(folder)).faults
    assert any(f.startswith("shard-000000.tar: sha256 ") for f in faults)
    assert any(f.startswith("manifest.json: boxes_per_class star ") for f in faults)
    assert "shard-000099.tar: not in the manifest" in faults and len(faults) == 4


def test_samples_after_a_fault_are_checked(folder):
    damaged_header(folder)
    set_json(folder, 4, boxes=None)
    found = verify(str(folder))
    assert found.samples == 22
    assert any("sample 2 is lost: damaged header at byte" in fault for fault in found.faults)
    assert any("shard-000001.tar 000000009: damaged JSON: Expected" in f for f in found.faults)
    counts = [fault for fault in found.faults if "manifest.json" in fault]
    assert counts == ["manifest.json: its counts were not compared, as samples are lost"]


def test_lost_samples_of_a_shard_are_one_line(folder):
    truncated_in_a_member(folder)
    lost = [fault for fault in verify(str(folder)).faults if " lost: " in fault]
    assert len(lost) == 1 and lost[0].startswith(f"{SHARD}: sample 3 and 1 after it are lost: ")


def test_counts_are_compared_if_only_the_end_marker_is_lost(folder):
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 2 * BLOCK)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["boxes"] += 1
    (folder / "manifest.json").write_text(json.dumps(tree))
    found = verify(str(folder))
    assert found.samples == 23 and any(
        "its end marker is missing" in fault for fault in found.faults
    )
    (counts,) = [fault for fault in found.faults if "manifest.json" in fault]
    assert counts.startswith("manifest.json: boxes ")


def test_valid_set_has_no_faults(scenes):
    assert verify(scenes).faults == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_header, "not a valid shard: damaged header at byte"),
        (missing_json, "instead of 000000007.json"),
        (parent_in_a_name, "member name '../../000000007.jpg' is not"),
        (truncated_between_members, "its end marker is missing"),
    ],
)
def test_invalid_shard_with_the_right_hash_never_enters_the_cache(
    folder, tmp_path, damage, message
):
    damage(folder)
    path = folder / SHARD
    old = load_manifest(folder).shards[1]
    shard = Shard(
        name=SHARD, samples=old.samples, bytes=path.stat().st_size, sha256=file_sha256(path)
    )
    cache = ShardCache(tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        cache.open(shard, lambda to: shutil.copy(path, to))
    assert list(cache.folder.iterdir()) == []


def test_list_of_problems_is_compared_with_the_manifest(voc, tmp_path, convert_source):
    voc.add("a", [("cat", 1, 1, 9, 9), ("cat", 60, 9, 70, 20), ("cat", 60, 9, 80, 20)])
    out = tmp_path / "out"
    convert_source(voc_source(voc.root, "train"), out)
    assert verify(str(out)).faults == []
    path = out / "problems.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first)
    assert verify(str(out)).faults == [
        "problems.jsonl: 1 x box dropped, the manifest says 2",
    ]
    path.write_text(first + second[:20])
    (fault,) = verify(str(out)).faults
    assert fault.startswith(f"{path}, line 2: not a problem: ")
    path.unlink()
    assert verify(str(out)).faults == [f"{path}: missing, but the manifest counts problems"]
