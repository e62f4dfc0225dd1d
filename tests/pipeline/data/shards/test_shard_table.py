"""Test that the columns of a manifest's shards behave like a list of shards."""

import json

import pytest

from pipeline.data.shards.manifest import Manifest, load_manifest, write_manifest
from pipeline.data.shards.shard_table import Shard, ShardParser, ShardTable
from pipeline.errors import UserError

ROWS = [
    {"name": f"shard-{i:06d}.tar", "samples": i + 1, "bytes": 1000 * i + 7, "sha256": f"{i:064x}"}
    for i in range(5)
]
SHARDS = [Shard(**row) for row in ROWS]


def manifest(shards) -> Manifest:
    return Manifest(
        name="x",
        split="train",
        source="coco",
        fingerprint="0",
        classes=["a"],
        samples=sum(shard.samples for shard in shards),
        samples_without_objects=0,
        boxes=0,
        boxes_per_class={"a": 0},
        shards=shards,
        problem_counts={},
    )


def test_table_reads_like_a_list():
    table = ShardTable()
    assert all(table.add(row) for row in ROWS)
    assert len(table) == 5 and list(table) == SHARDS == table and table == table[:]
    assert table[-1] == SHARDS[-1] and table[1:4:2] == SHARDS[1:4:2]
    assert table.counts.tolist() == [1, 2, 3, 4, 5]
    assert list(table.hashes) == [shard.sha256 for shard in SHARDS]
    with pytest.raises(IndexError):
        table[5]


def test_written_manifest_is_read_unchanged_and_as_columns(tmp_path):
    written = manifest(SHARDS)
    write_manifest(written, tmp_path)
    read = load_manifest(tmp_path)
    assert isinstance(read.shards, ShardTable) and read == written
    assert read.content_hash == written.content_hash
    assert read.counts.tolist() == written.counts.tolist()
    before = (tmp_path / "manifest.json").read_bytes()
    write_manifest(read, tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, r"shards\.3\.samples"),
        ({"samples": 2.5}, r"shards\.3\.samples"),
        ({"bytes": -1}, r"shards\.3\.bytes"),
        ({"sha256": "0" * 63}, r"shards\.3\.sha256"),
        ({"sha256": "0" * 64 + "\n"}, r"shards\.3\.sha256"),
        ({"name": "../shard.tar"}, r"shards\.3\.name"),
        ({"name": 7}, r"shards\.3\.name"),
        ({"more": 1}, r"shards\.3\.more"),
    ],
)
def test_invalid_shard_is_reported(tmp_path, change, message):
    tree = manifest(SHARDS).model_dump()
    tree["shards"][3].update(change)
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path)


def test_shards_elsewhere_in_the_json_do_not_count(tmp_path):
    tree = manifest(SHARDS).model_dump()
    tree["boxes_per_class"] = ROWS[0]
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="boxes_per_class"):
        load_manifest(tmp_path)
    assert ShardParser().shards("none") == "none"
