"""Shard sets are written completely or not at all, and reproducibly."""

from collections import Counter

import pytest

from pipeline.data.conversion.convert import stage_shard_set
from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.sources.synthetic import shapes_source
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError

ONE_SHARD = {"image-classes.bin", "manifest.json", "shard-000000.tar", "shard-000000.index"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_source_gives_same_bytes(tmp_path, convert_source):
    for name in ("a", "b"):
        convert_source(shapes_source(7, "train", 64), tmp_path / name, shard_samples=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        *("image-classes.bin", "manifest.json"),
        *(f"shard-{i:06d}.{suffix}" for i in range(3) for suffix in ("tar", "index")),
    }


def test_fingerprint_depends_on_content_not_on_sharding(tmp_path, convert_source):
    one = convert_source(shapes_source(7, "train", 64), tmp_path / "a", shard_samples=3)
    two = convert_source(
        shapes_source(7, "train", 64), tmp_path / "b", shard_bytes=15_000, name="other"
    )
    three = convert_source(shapes_source(7, "train", 64, seed=1), tmp_path / "c")
    assert one.fingerprint == two.fingerprint != three.fingerprint
    assert len(one.shards) == 3 and one.content_hash != two.content_hash


def test_existing_set_is_replaced_only_with_overwrite(tmp_path, convert_source):
    out = tmp_path / "out"
    convert_source(shapes_source(7, "train", 64), out, shard_samples=2)
    with pytest.raises(UserError, match="already contains a shard set; .* --overwrite"):
        convert_source(shapes_source(3, "train", 64), out)
    convert_source(shapes_source(3, "train", 64), out, overwrite=True)
    assert load_manifest(out).samples == 3
    assert set(contents(out)) == ONE_SHARD


def test_folders_with_other_files_are_rejected_unchanged(tmp_path, convert_source):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"contains other files \(thesis\.txt\)"):
            convert_source(shapes_source(1, "train", 64), tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="is a file"):
        convert_source(shapes_source(1, "train", 64), tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_leftovers_of_a_killed_conversion_are_deleted(tmp_path, convert_source):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "shard-000000.tar").write_bytes(b"half")
    (tmp_path / "shard-000009.tar").write_bytes(b"old")
    convert_source(shapes_source(1, "train", 64), tmp_path)
    assert set(contents(tmp_path)) == ONE_SHARD


def failing(images):
    yield next(iter(images))
    raise RuntimeError("power cut")


def test_failed_conversion_leaves_the_old_set_or_nothing(tmp_path, convert_source):
    out = tmp_path / "out"
    source = shapes_source(3, "train", 64)
    source.images = failing(source.images)
    with pytest.raises(RuntimeError, match="power cut"):
        convert_source(source, out)
    assert not out.exists()
    convert_source(shapes_source(2, "train", 64), out)
    before = contents(out)
    source.images = failing(shapes_source(3, "train", 64).images)
    with pytest.raises(RuntimeError, match="power cut"):
        convert_source(source, out, overwrite=True)
    assert contents(out) == before


def test_full_disk_raises_user_error(tmp_path, convert_source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device; no shard set was written"):
        convert_source(shapes_source(2, "train", 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_strict_rejects_any_problem(voc, tmp_path, convert_source, capsys):
    voc.add("a", [("cat", 1, 1, 9, 9), ("cat", 50, 9, 60, 12)])
    with pytest.raises(UserError, match=r"--strict rejects 1 problem; the first: a\.xml: box"):
        convert_source(voc_source(voc.root, "train"), tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists() and "a.xml: cat" in capsys.readouterr().err


def test_strict_permits_what_is_harmless(voc, tmp_path, convert_source, encode):
    voc.add("a", [("cat", 1, 1, 9, 9)], image=encode("PNG"))
    out = tmp_path / "out"
    convert_source(voc_source(voc.root, "train"), out, strict=True)
    assert [str(p) for p in read_problems(out)] == ["a.jpg: note: content is PNG; stored as .png"]


def test_set_without_usable_images_is_rejected(voc, tmp_path, convert_source):
    voc.add("a", [("cat", 1, 1, 9, 9)], image=b"no image")
    with pytest.raises(UserError, match=r"no usable image; .*a\.jpg: image skipped: not an"):
        convert_source(voc_source(voc.root, "train"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_class_names_raise(voc, tmp_path, convert_source):
    voc.add("a")
    with pytest.raises(UserError, match="no class names found: no image has objects"):
        convert_source(voc_source(voc.root, "train"), tmp_path / "out")


def test_problems_are_counted_and_listed_by_kind(voc, tmp_path):
    valid = [("cat", 1, 1, x, y) for x in range(9, 19) for y in range(9, 19)]
    voc.add("a", valid + [("cat", 50, 9, 60, 12)] * 25)
    voc.list("gone")
    source, out = voc_source(voc.root, "train"), tmp_path / "out"
    staged = stage_shard_set(source.images, [], out, "x", "train", source.classes, source="voc")
    staged.publish()
    text = staged.problems.format()
    assert text.startswith(
        "problems: 25 x box dropped\n  a.xml: cat [49.0, 8.0, 60.0, 12.0]: outside the image"
    )
    assert "... and 5 more, all in problems.jsonl" in text
    assert text.endswith("problems: 1 x image skipped\n  gone: no such image in JPEGImages")
    counts = load_manifest(out).problem_counts
    assert counts == {"box dropped": 25, "image skipped": 1}
    assert Counter(problem.kind for problem in read_problems(out)) == counts


def test_set_without_problems_has_no_list_of_them(voc, tmp_path, convert_source):
    voc.add("a", [("cat", 9, 9, 3, 3), ("cat", 3, 3, 9, 9)])
    convert_source(voc_source(voc.root, "train"), tmp_path / "out")
    assert (tmp_path / "out/problems.jsonl").exists()
    scenes = shapes_source(2, "train", 64)
    staged = stage_shard_set(
        scenes.images,
        [],
        tmp_path / "out",
        "x",
        "train",
        scenes.classes,
        source="shapes",
        overwrite=True,
    )
    staged.publish()
    assert staged.problems.format() == "problems: none"
    assert not (tmp_path / "out/problems.jsonl").exists()
    assert list(read_problems(tmp_path / "out")) == []
