"""Test manifests: missing, too new, older, invalid, and written atomically."""

import json
from pathlib import Path

import pytest

from pipeline.data.shards.manifest import (
    load_manifest,
    read_problems,
    require_classes,
    write_manifest,
)
from pipeline.data.shards.problems import OLD_PROBLEM_KINDS
from pipeline.data.shards.verify import verify
from pipeline.errors import UserError


def change(folder: str, tmp_path: Path, **changes) -> Path:
    """Copy a manifest with changed keys; return its folder."""
    tree = json.loads((Path(folder) / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, **changes}))
    return tmp_path


def test_manifest_describes_the_set(scenes):
    manifest = load_manifest(scenes)
    assert manifest.samples == 23 and [s.samples for s in manifest.shards] == [5, 5, 5, 5, 3]
    assert manifest.boxes == sum(manifest.boxes_per_class.values()) > 23
    assert list(manifest.boxes_per_class) == manifest.classes


def test_file_uri_equals_its_path(scenes):
    assert load_manifest(f"file://{scenes}") == load_manifest(scenes)


def test_folder_without_manifest_is_not_a_shard_set(tmp_path):
    with pytest.raises(UserError, match=r"\(manifest\.json not found\); .*jobs\.prepare"):
        load_manifest(tmp_path)


def test_newer_format_is_reported(scenes, tmp_path):
    # A newer format may also have unknown fields; the message must be about the version.
    folder = change(scenes, tmp_path, format_version=99, codec="av2")
    with pytest.raises(UserError, match=r"has format 99, written by a newer version .* up to 5"):
        load_manifest(folder)


FORMAT_1 = Path(__file__).parents[3] / "artifacts/shard_set_format_1"


def test_manifest_of_format_1_loads_with_current_problem_kinds(tmp_path):
    stored = json.loads((FORMAT_1 / "manifest.json").read_text())
    assert stored["format_version"] == 1
    kinds = [problem["kind"] for problem in stored["problems"]]
    assert set(OLD_PROBLEM_KINDS) < set(kinds)
    manifest = load_manifest(FORMAT_1)
    assert manifest.problem_counts == {
        "member skipped": 1,
        "box dropped": 1,
        "repaired": 2,
        "box clipped": 1,
        "image skipped": 1,
    }
    assert [p.reason for p in read_problems(FORMAT_1)] == [p["reason"] for p in stored["problems"]]
    assert manifest.samples == 3 and not verify(str(FORMAT_1)).faults
    write_manifest(manifest, tmp_path)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["format_version"] == 5 and load_manifest(tmp_path) == manifest
    assert written.pop("problem_counts") == manifest.problem_counts
    for added in (
        "lost_objects",
        "excluded_boxes",
        "crowd_boxes",
        "renamed",
        "tiling",
        "image_classes",
    ):
        assert not written.pop(added)
    assert written | {"format_version": 1} == {k: v for k, v in stored.items() if k != "problems"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 24}, "samples is not the sum"),
        ({"classes": ["a", "a"]}, "different names"),
        ({"shards": [{"name": "../x.tar", "samples": 1, "bytes": 1, "sha256": "0" * 64}]}, "name"),
        ({"shards": None}, "shards"),
        ({"problem_counts": {"broken": 1}}, "problem_counts.broken"),
        ({"problems": []}, "problems: extra inputs"),
        ({"format_version": 2, "problems": [{"file": "a"}]}, "problems.0: not a problem"),
        (
            {"format_version": 2, "problems": [{"file": "a", "kind": "x", "reason": "b"}]},
            "problems.0: not a problem",
        ),
        ({"format_version": 2, "problems": {}}, "no list of problems"),
    ],
)
def test_invalid_manifest_is_rejected(scenes, tmp_path, changes, reason):
    with pytest.raises(UserError, match=f"not a manifest: .*{reason}"):
        load_manifest(change(scenes, tmp_path, **changes))


def test_broken_json_is_rejected(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 1,')
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("https://me:secret@host/set", "https://...@host/set: credentials do not belong"),
        ("https://host/set?token=secret", "https://host/set: .* plain prefix"),
        ("simplecache::s3://bucket/set", "plain prefix"),
        ("nothing://host/set", "nothing://host/set: cannot be read: .*not known"),
    ],
)
def test_url_that_is_not_a_plain_prefix_is_rejected_without_its_secrets(uri, reason):
    with pytest.raises(UserError, match=reason) as caught:
        load_manifest(uri)
    assert "secret" not in str(caught.value)


def test_crash_while_writing_leaves_no_manifest(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        write_manifest(load_manifest(scenes), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_different_class_lists_are_both_reported(scenes):
    manifest = load_manifest(scenes)
    require_classes(scenes, manifest, manifest.classes, "model M")
    with pytest.raises(UserError, match=r"has the classes circle, .*; model M has star, circle"):
        require_classes(scenes, manifest, ["star", "circle"], "model M")


def test_content_hash_depends_on_shards_and_classes_only(scenes, tmp_path):
    manifest = load_manifest(scenes)
    renamed = load_manifest(change(scenes, tmp_path, name="other", problem_counts={}))
    fewer = load_manifest(
        change(scenes, tmp_path, samples=20, shards=[s.model_dump() for s in manifest.shards[:4]])
    )
    assert manifest.content_hash == renamed.content_hash != fewer.content_hash


def test_manifest_of_format_3_loads(scenes, tmp_path):
    folder = change(scenes, tmp_path, format_version=3, problem_counts={"repaired": 2})
    assert load_manifest(folder).problem_counts == {"repaired": 2}
