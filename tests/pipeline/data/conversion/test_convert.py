"""Shard sets come out whole or not at all, and the same each time."""

import json

import pytest

from pipeline.data.conversion.convert import report
from pipeline.data.shards.manifest import load_manifest
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_input_gives_the_same_bytes(tmp_path, written):
    for name in ("a", "b"):
        written(shapes_source(7, "train", 64), tmp_path / name, shard_samples=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        "manifest.json",
        *(f"shard-{i:06d}.{suffix}" for i in range(3) for suffix in ("tar", "index")),
    }


def test_the_fingerprint_is_that_of_the_content_not_of_the_shards(tmp_path, written):
    one = written(shapes_source(7, "train", 64), tmp_path / "a", shard_samples=3)
    two = written(shapes_source(7, "train", 64), tmp_path / "b", shard_bytes=15_000, name="other")
    three = written(shapes_source(7, "train", 64, seed=1), tmp_path / "c")
    assert one.fingerprint == two.fingerprint != three.fingerprint
    assert len(one.shards) == 3 and one.content_hash != two.content_hash


def test_an_existing_set_is_replaced_only_when_asked(tmp_path, written):
    out = tmp_path / "out"
    written(shapes_source(7, "train", 64), out, shard_samples=2)
    with pytest.raises(UserError, match="holds a shard set already; --overwrite"):
        written(shapes_source(3, "train", 64), out)
    written(shapes_source(3, "train", 64), out, overwrite=True)
    assert load_manifest(out).samples == 3
    assert set(contents(out)) == {"manifest.json", "shard-000000.tar", "shard-000000.index"}


def test_other_peoples_files_are_never_touched(tmp_path, written):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds other files \(thesis\.txt\)"):
            written(shapes_source(1, "train", 64), tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="is a file"):
        written(shapes_source(1, "train", 64), tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_what_a_killed_conversion_left_is_cleared_away(tmp_path, written):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "shard-000000.tar").write_bytes(b"half")
    (tmp_path / "shard-000009.tar").write_bytes(b"old")
    written(shapes_source(1, "train", 64), tmp_path)
    assert set(contents(tmp_path)) == {"manifest.json", "shard-000000.tar", "shard-000000.index"}


def failing(records):
    yield next(iter(records))
    raise RuntimeError("power cut")


def test_a_failure_leaves_the_old_set_or_nothing(tmp_path, written):
    out = tmp_path / "out"
    source = shapes_source(3, "train", 64)
    source.records = failing(source.records)
    with pytest.raises(RuntimeError, match="power cut"):
        written(source, out)
    assert not out.exists()
    written(shapes_source(2, "train", 64), out)
    before = contents(out)
    source.records = failing(shapes_source(3, "train", 64).records)
    with pytest.raises(RuntimeError, match="power cut"):
        written(source, out, overwrite=True)
    assert contents(out) == before


def test_a_full_disk_is_one_line(tmp_path, written, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; no set was written"):
        written(shapes_source(2, "train", 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_strict_refuses_any_problem(voc, tmp_path, written, capsys):
    voc.add("a", [("cat", 1, 1, 9, 9), ("cat", 9, 9, 3, 3)])
    with pytest.raises(UserError, match=r"1 problems and --strict; the first: a\.xml: box dropped"):
        written(voc_source(voc.root, "train"), tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists() and "a.xml: cat" in capsys.readouterr().err


def test_everything_skipped_is_no_data_set(voc, tmp_path, written):
    voc.add("a", [("cat", 1, 1, 9, 9)], image=b"no image")
    with pytest.raises(
        UserError, match=r"no image could be taken; .*a\.jpg: image skipped: not an"
    ):
        written(voc_source(voc.root, "train"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_class_names(voc, tmp_path, written):
    voc.add("a")
    with pytest.raises(UserError, match="no class names found; give them with --classes"):
        written(voc_source(voc.root, "train"), tmp_path / "out")


def test_the_report_counts_and_names(voc, tmp_path, written):
    voc.add("a", [("cat", 1, 1, 9, 9)] + [("cat", 9, 9, 3, 3)] * 25)
    voc.list("gone")
    manifest = written(voc_source(voc.root, "train"), tmp_path / "out")
    text = report(manifest.problems)
    assert text.startswith("problems: 25 x box dropped\n  a.xml: cat [8.0, 8.0, 3.0, 3.0]: empty\n")
    assert "... and 5 more, all in manifest.json" in text
    assert text.endswith("problems: 1 x image skipped\n  gone: no such image in JPEGImages")
    stored = json.loads((tmp_path / "out/manifest.json").read_text())["problems"]
    assert len(stored) == 26
    assert report([]) == "problems: none"
