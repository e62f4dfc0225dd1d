"""Test the source of WebDataset shards made elsewhere: layouts, spellings, patterns, bad tars."""

import gc
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from jobs import prepare
from pipeline.data.conversion.shard_task import ShardTask
from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.webdataset import fetched_tar
from pipeline.data.sources.webdataset.fetched_tar import FetchedTar
from pipeline.data.sources.webdataset.pattern import expand_shards, shard_names
from pipeline.data.sources.webdataset.sample_json import (
    NoObjectsError,
    UnnamedClassError,
    parse_sample_json,
)
from pipeline.data.sources.webdataset.source import webdataset_source
from pipeline.errors import UserError
from pipeline.storage.remote import Remote

Write = Callable[..., Path]
COCO = {
    "image_id": 3,
    "width": 40,
    "height": 30,
    "annotations": [
        {"bbox": [2, 3, 10, 20], "category_id": 1, "iscrowd": 0, "area": 150},
        {"bbox": [0, 0, 40, 30], "category_id": 0, "iscrowd": "1"},
    ],
}
VOC = """<annotation><size><width>40</width><height>30</height></size><object><name>dog</name>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>23</ymax></bndbox></object></annotation>"""
YOLO = "1 0.175 0.4333333333333333 0.25 0.6666666666666666\n"


@pytest.fixture
def write(tmp_path: Path, encode: Callable[..., bytes]) -> Write:
    """Return ``write(name, *samples)``, which writes a shard with webdataset; jpg is added."""

    def run(name: str, *samples: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        with webdataset.TarWriter(str(path)) as tar:
            for number, sample in enumerate(samples):
                tar.write({"__key__": f"s{number}", "jpg": encode(), **sample})
        return path

    return run


def tar_of(path: Path, files: dict[str, bytes]) -> str:
    """Write a tar with these members."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def converted(convert_source: Any, source: Any, out: Path) -> list[Sample]:
    manifest = convert_source(source, out)
    shards = ShardSet(out)
    return [Sample.from_json(shards.read(i).json) for i in range(manifest.samples)]


@pytest.mark.parametrize("labels", [{"json": COCO}, {"xml": VOC.encode()}, {"txt": YOLO}])
def test_labels_of_every_kind_give_the_same_box(write, convert_source, tmp_path, labels):
    path = write("in/007.tar", labels)
    [sample] = converted(
        convert_source, webdataset_source(str(path), ["cat", "dog"]), tmp_path / "out"
    )
    assert (sample.image_id, sample.file_name) == ("007/s0", "007.tar/s0.jpg")
    assert sample.boxes[0] == pytest.approx((2, 3, 12, 23)) and sample.labels[0] == 1
    assert not list(read_problems(tmp_path / "out"))
    if "json" in labels:
        assert (sample.crowd, sample.area) == ([False, True], [150.0, 1200.0])


def test_names_in_labels_give_the_classes_of_all_shards(write, tmp_path):
    row = {"bbox": [1, 1, 5, 5]}
    write("in/a0.tar", {"json": [{**row, "label": "dog"}]})
    write("in/a1.tar", {"json": {"objects": [{**row, "category": "cat"}]}})
    source = webdataset_source(str(tmp_path / "in/a{0..1}.tar"))
    assert (source.classes, source.name) == (["cat", "dog"], "in")
    assert [image.image_id for image in source.images] == ["a0/s0", "a1/s0"]
    assert [image.image_id for image in source.images] == ["a0/s0", "a1/s0"]


def test_categories_of_a_json_name_the_numbers(write, tmp_path):
    path = write("in/0.tar", {"json": {**COCO, "annotations": COCO["annotations"][:1]}})
    index = tmp_path / "train-index.json"
    index.write_text(json.dumps({"categories": [{"id": 5, "name": "b"}, {"id": 1, "name": "a"}]}))
    source = webdataset_source(str(path), annotations=index)
    assert (source.classes, source.category_ids) == (["a", "b"], [1, 5])
    [image] = source.images
    assert [item.name for item in image.read_record().objects] == ["a"]
    index.write_text("[]")
    with pytest.raises(UserError, match="no list of categories"):
        webdataset_source(str(path), annotations=index)


BOX = [1, 2, 11, 22]


@pytest.mark.parametrize(
    ("tree", "boxes"),
    [
        ([{"bbox": BOX, "category_id": 1}], [(1, 2, 12, 24)]),
        ({"objects": {"bbox": [BOX], "category": [1], "area": [7]}}, [(1, 2, 12, 24)]),
        ({"boxes": [BOX, BOX], "labels": [1, "1"]}, [(1, 2, 11, 22)] * 2),
        ({"bboxes": [BOX], "classes": ["b"]}, [(1, 2, 12, 24)]),
        ({"bbox": BOX, "label": "b"}, [(1, 2, 12, 24)]),
        ({"boxes": [], "labels": []}, []),
        ({"annotations": []}, []),
        ([], []),
        ([{"xmin": 1, "ymin": "2", "xmax": 11.0, "ymax": 22, "class": "b"}], [(1, 2, 11, 22)]),
        ([{"box": {"x1": 1, "y1": 2, "x2": 11, "y2": 22}, "class_id": 1.0}], [(1, 2, 11, 22)]),
        ([{"left": 1, "top": 2, "width": 10, "height": 20, "label": "b"}], [(1, 2, 11, 22)]),
        (
            [{"bndbox": {"xmin": 1, "ymin": 2, "xmax": 11, "ymax": 22}, "name": "b"}],
            [(1, 2, 11, 22)],
        ),
        ([{"bbox": BOX, "category": {"id": 9, "name": "b"}}], [(1, 2, 12, 24)]),
        ({"annotations": None}, []),
        ({"annotations": {}, "image": {"width": 40, "height": 30}}, []),
        ({"boxes": None, "labels": None}, []),
        ({"annotations": None, "boxes": [BOX], "labels": [1]}, [(1, 2, 11, 22)]),
        (
            {
                "categories": [{"id": "7", "name": "b"}],
                "annotations": [{"bbox": BOX, "category_id": 7}],
            },
            [(1, 2, 12, 24)],
        ),
    ],
)
def test_spellings_of_objects(tree, boxes):
    parsed = parse_sample_json(tree, {"0": "a", "1": "b"})
    assert [item.box for item in parsed.objects] == boxes and not parsed.faults
    assert {item.name for item in parsed.objects} <= {"b"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"bbox": BOX}, "object 1: no class; known keys: category_name"),
        ({"bbox": BOX, "label": 2}, "object 1: unknown class 2; known: 0 to 1"),
        ({"bbox": BOX, "label": True}, "object 1: label True is neither a name nor a number"),
        ({"bbox": BOX[:3], "label": 1}, "object 1: bbox has not four numbers"),
        ({"bbox": [1, 2, None, 4], "label": 1}, "object 1: None in its box is not a number"),
        ({"polygon": [], "label": 1}, "object 1: no box; known keys: bbox"),
        ({"x": 1, "y": 2, "width": 3, "height": 4, "label": 1}, "give --box-format xywh or cxcywh"),
    ],
)
def test_object_that_cannot_be_read_is_reported(row, fault):
    parsed = parse_sample_json([row, {"bbox": BOX, "label": 0}], {"0": "a", "1": "b"})
    assert len(parsed.objects) == 1 and fault in parsed.faults[0]


def test_box_format_and_flags():
    row = {"x": 6, "y": 12, "width": 10, "height": 20, "label": "a", "iscrowd": "maybe"}
    parsed = parse_sample_json([row], {}, "cxcywh")
    assert parsed.objects[0].box == (1, 2, 11, 22) and not parsed.objects[0].crowd
    assert parsed.doubts == ["object 1: iscrowd 'maybe' is not a flag; read as false"]
    with pytest.raises(UnnamedClassError):
        parse_sample_json([{"bbox": BOX, "label": 0}], {})


@pytest.mark.parametrize(
    "tree",
    [{"caption": "a cat", "url": "x"}, 5, [1], {"boxes": [BOX]}, {"boxes": [BOX], "labels": []}],
)
def test_json_without_objects_is_not_a_label(tree):
    with pytest.raises(NoObjectsError):
        parse_sample_json(tree, {})


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"cls": 3}, r"\.cls is the class of a whole image, without a box"),
        ({}, r"no image has labels .*; found: \.jpg"),
        ({"json": {"caption": "x"}, "txt": "a cat"}, r"\.json: no objects .*caption; \.txt: its"),
        ({"json": [{"bbox": BOX, "label": 3}]}, "label 3 is a number; give the names"),
        ({"txt": YOLO}, "its classes are numbers; give their names"),
        ({"xml": b"<a>"}, r"\.xml: the XML does not parse"),
        ({"json": b"{"}, r"\.json: Expecting"),
        ({"json": b"[" * 100_000}, r"\.json: nested too deeply"),
        ({"json": [{"bbox": [5, 5, 38, 28], "label": "a"}]}, "give --box-format xyxy"),
        ({"json": {"boxes": [[30, 20, 8, 9]], "labels": ["a"]}}, "give --box-format xywh"),
    ],
)
def test_shards_without_boxes_are_rejected_with_the_reason(write, sample, message):
    path = write("in/0.tar", sample)
    with pytest.raises(UserError, match=message) as caught:
        webdataset_source(str(path))
    assert (
        str(path) in str(caught.value)
        or "in/0.tar" in str(caught.value)
        or "0.tar" in str(caught.value)
    )


def test_objects_that_cannot_be_read_are_named_in_place_of_their_classes(write):
    row = {"x": 1, "y": 2, "width": 3, "height": 4, "label": "a"}
    path = write("in/0.tar", {"json": [row, row]})
    with pytest.raises(UserError, match=r"2 problems, the first: .*json: .* give --box-format xyw"):
        webdataset_source(str(path))
    assert webdataset_source(str(path), box_format="xywh").classes == ["a"]


def test_box_format_that_is_given_is_not_doubted(write):
    path = write("in/0.tar", {"json": [{"bbox": [5, 5, 38, 28], "label": "a"}]})
    [image] = webdataset_source(str(path), None, None, "xyxy").images
    assert image.read_record().objects[0].box == (5, 5, 38, 28)
    assert len(list(webdataset_source(str(path), None, None, "xywh").images)) == 1


def test_every_member_is_accounted_for(tmp_path, encode, convert_source):
    label = json.dumps([{"bbox": BOX, "label": "a"}]).encode()
    path = tar_of(
        tmp_path / "x.tar",
        {
            "d/good.jpg": encode(),
            "apart.jpg": encode(),
            "d/good.json": label,
            "apart.json": label,
            "unlabelled.jpg": encode(),
            "orphan.json": label,
            "two.a.jpg": encode(),
            "two.b.jpg": encode(),
            "two.json": label,
            "broken.jpg": encode(),
            "broken.json": b"{",
            "up.JPG": encode(),
            "up.jpg": encode(),
            "up.json": label,
            "photo.heic": b"x",
            "photo.json": label,
            "README": b"x",
            "../evil.jpg": b"x",
            "__meta__/a.json": b"{}",
            "._apart.jpg": b"x",
        },
    )
    source = webdataset_source(path)
    manifest = convert_source(source, tmp_path / "out")
    shards = ShardSet(tmp_path / "out")
    ids = [Sample.from_json(shards.read(i).json).image_id for i in range(manifest.samples)]
    assert ids == ["x/d/good", "x/apart", "x/up"]
    shown = [(p.file, p.kind, p.reason) for p in read_problems(tmp_path / "out")]
    for file, kind, reason in (
        ("x.tar/../evil.jpg", "member skipped", "name contains .."),
        ("x.tar/README", "file unused", "its name is not KEY.SUFFIX"),
        ("x.tar", "file unused", "up.jpg: duplicate file name in tar file jpg"),
        ("x.tar", "note", "members of up to 2 samples are not adjacent"),
        ("x.tar/unlabelled", "image skipped", "no .json under the key of the image; it has jpg"),
        ("x.tar/orphan", "image skipped", "no image under one key; it has json"),
        ("x.tar/two", "image skipped", "several images (a.jpg, b.jpg) under one key"),
        ("x.tar/broken.jpg", "image skipped", "x.tar/broken.json cannot be used"),
        ("x.tar/photo", "image skipped", "no image under one key; it has heic, json"),
    ):
        assert [1 for f, k, r in shown if (f, k) == (file, kind) and r.startswith(reason)] == [1], (
            file,
            shown,
        )
    assert [row for row in shown if row[1] != "near duplicate"] == shown[:9]


def test_truncated_shard_and_same_keys_in_two_shards(write, tmp_path, convert_source):
    label = {"json": [{"bbox": BOX, "label": "a"}]}
    write("in/0.tar", label, label)
    cut = write("in/1.tar", label, label)
    with cut.open("r+b") as file:
        file.truncate(5000)
    manifest = convert_source(webdataset_source(str(tmp_path / "in")), tmp_path / "out")
    kinds = [problem.kind for problem in read_problems(tmp_path / "out")]
    assert manifest.samples >= 2 and "member skipped" in kinds
    write("in/1.tar", label)
    manifest = convert_source(webdataset_source(str(tmp_path / "in/*.tar")), tmp_path / "new")
    assert manifest.samples == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"<html>" * 200, "is not a tar"), (b"PK\x03\x04" * 99, "is a zip")],
)
def test_file_that_is_not_a_tar_is_rejected(tmp_path, content, message):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.tar: {message}; give tars"):
        webdataset_source(str(path))


def test_zip_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.tar", "w") as archive:
        archive.writestr("a.json", "{}")
    with pytest.raises(UserError, match="is a zip"):
        webdataset_source(str(tmp_path / "a.tar"))


def test_tar_of_another_layout_is_rejected(tmp_path, encode):
    files = {"JPEGImages/a.jpg": encode(), "Annotations/a.xml": VOC.encode()}
    with pytest.raises(UserError, match=r"no image has labels .* under the same key"):
        webdataset_source(tar_of(tmp_path / "voc.tar", files))
    with pytest.raises(UserError, match="contains no samples"):
        webdataset_source(tar_of(tmp_path / "none.tar", {}))


def test_patterns_expand_in_order(write, tmp_path):
    for name in ("0.tar", "1.tar", "b/2.tar"):
        write(name)
    found = expand_shards(str(tmp_path / "{0..1}.tar"))
    assert found == [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]
    assert expand_shards(str(tmp_path)) == found
    assert expand_shards(f"file://{tmp_path}/?.tar") == found
    assert expand_shards("s3://b/{000..002}.tar") == [f"s3://b/00{n}.tar" for n in range(3)]
    assert shard_names([*found, str(tmp_path / "b/2.tar")]) == ["0.tar", "1.tar", "b/2.tar"]
    assert shard_names(["https://a.b/x/0.tar"]) == ["0.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{folder}/none/{{0..3}}.tar", "none/0.tar: not found; 4 of 4 names"),
        ("{folder}/*.tar", "a wildcard without a match"),
        ("{folder}", "not found"),
        ("{folder}/{{0..1", "the braces are unbalanced"),
        ("{folder}/{{0..9999999999}}.tar", "names more than 1000000 shards"),
        ("{folder}/" + "{{a,b}}" * 30, "names more than 1000000 shards"),
        ("pipe:cat x.tar", "such an address would run a command"),
        ("s3://b/*.tar", "wildcards are for local files"),
        ("s3://b/a.tar::s3://b/b.tar", "give one pattern"),
        ("${{HOME}}/a.tar", "give one pattern"),
        ("https://u:p@example.invalid/a.tar", "credentials do not belong in a URI"),
        ("s3://b/{{0..1}}.tar.gz", "a compressed tar can only be read from its start"),
    ],
)
def test_pattern_that_names_nothing_usable_is_rejected(tmp_path, pattern, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*")) as caught:
        expand_shards(pattern.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def served(write, tmp_path, monkeypatch) -> tuple[str, list[str]]:
    """Return a pattern of two remote shards, which are copied from disk, and the fetched names."""
    label = {"json": [{"bbox": BOX, "label": "a"}]}
    for number in range(2):
        write(f"in/{number}.tar", label, label)
    fetched: list[str] = []

    def copy(self, name, to, max_bytes):
        fetched.append(name)
        shutil.copy(tmp_path / "in" / name, to)
        return "sha of " + name

    monkeypatch.setattr(Remote, "_download", copy)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return "https://example.invalid/in/{0..1}.tar", fetched


def test_remote_shards_are_on_disk_while_images_refer_to_them(served, tmp_path, monkeypatch):
    pattern, fetched = served
    monkeypatch.setattr("pipeline.data.sources.webdataset.source.KEPT_BYTES", 0)
    source = webdataset_source(pattern, ["a"])
    most = 0
    images = iter(source.images)
    for image in images:
        assert image.read_record().objects and len(image.image.read(10**6)) > 100
        most = max(most, len(list(tmp_path.glob("webdataset-*"))))
    assert fetched == ["0.tar", "0.tar", "1.tar"] and most <= 2
    del image, images, source
    gc.collect()
    assert not list(tmp_path.glob("webdataset-*"))


def test_small_remote_set_is_fetched_once(served, tmp_path, convert_source):
    pattern, fetched = served
    source = webdataset_source(pattern)
    assert convert_source(source, tmp_path / "out").samples == 4
    assert fetched == ["0.tar", "1.tar"]
    del source
    gc.collect()
    assert not list(tmp_path.glob("webdataset-*"))


def test_task_of_remote_shards_can_be_run_by_another_process(served, tmp_path, monkeypatch):
    pattern, fetched = served
    images = list(webdataset_source(pattern, ["a"]).images)
    task = ShardTask(str(tmp_path / "task"), 0, ("a",), images)
    sent = pickle.dumps(task)
    copy = pickle.loads(sent)  # noqa: S301 - our own bytes
    assert copy.input_hash() == task.input_hash() and len(fetched) == 2
    assert copy.run().read().shard.samples == 4
    assert fetched == ["0.tar", "1.tar"] * 2
    monkeypatch.setattr(Remote, "_download", lambda self, name, to, size: to.touch() or "other")
    fetched_tar._recent.clear()
    changed = pickle.loads(sent)  # noqa: S301
    with pytest.raises(RuntimeError, match="changed during the conversion"):
        changed.images[0].read_record()
    fetched_tar._recent.clear()


def test_missing_remote_shard_is_reported(monkeypatch):
    def missing(self, name, to, max_bytes):
        raise FileNotFoundError(name)

    monkeypatch.setattr(Remote, "_download", missing)
    with pytest.raises(UserError, match=r"s3://b/0\.tar: not found; name shards"):
        FetchedTar("s3://b/0.tar")


def test_job_converts_shards(write, tmp_path, capsys):
    label = {"json": [{"bbox": BOX, "category_id": 1}]}
    write("in/00.tar", label)
    write("in/01.tar", label)
    pattern = str(tmp_path / "in/{00..01}.tar")
    options = ["--source", "webdataset", "--shards", pattern, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="with --classes, or a JSON"):
        prepare.main(options)
    result = prepare.main([*options, "--classes", "a,b", "--split", "val"])
    assert (result["samples"], result["boxes_per_class"]) == (2, {"a": 0, "b": 2})
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.source, manifest.name, manifest.split) == ("webdataset", "in", "val")
    with pytest.raises(UserError, match="--source webdataset needs --shards"):
        prepare.main(["--source", "webdataset", "--out", "x"])
    with pytest.raises(UserError, match="--box-format cannot be used with --source shapes"):
        prepare.main(["--source", "shapes", "--box-format", "xyxy", "--out", "x"])


@pytest.mark.integration
def test_shards_in_an_object_store_give_the_set_of_those_on_disk(write, s3_bucket, tmp_path):
    client, bucket = s3_bucket
    for number in range(3):
        path = write(f"in/{number}.tar", *[{"json": [{"bbox": BOX, "label": f"c{number}"}]}] * 2)
        client.upload_file(str(path), bucket, f"in/{path.name}")
    for pattern, out in ((f"s3://{bucket}/in", "there"), (str(tmp_path / "in"), "here")):
        shards = f"{pattern}/{{0..2}}.tar"
        prepare.main(["--source", "webdataset", "--shards", shards, "--out", str(tmp_path / out)])
    there, here = (load_manifest(tmp_path / out) for out in ("there", "here"))
    assert there.content_hash == here.content_hash and there.classes == ["c0", "c1", "c2"]
    with pytest.raises(UserError, match=r"/in/3\.tar: not found"):
        list(webdataset_source(f"s3://{bucket}/in/{{2..3}}.tar", ["a"]).images)
