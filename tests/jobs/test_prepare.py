"""The job ``prepare``: options, output and errors."""

import errno
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from jobs.cli import prepare_options
from jobs.prepare import main
from pipeline.data.conversion.convert import MAX_SHARD_BYTES, MAX_SHARD_SAMPLES
from pipeline.data.conversion.shard_task import ShardTask
from pipeline.data.shards.manifest import load_manifest, write_manifest
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.errors import UserError

JPEG = simplejpeg.encode_jpeg(np.arange(120 * 160 * 3, dtype=np.uint8).reshape(120, 160, 3))
SHAPES = ["--source", "shapes", "--count", "3", "--size", "64"]


def test_shapes_are_converted(tmp_path, capsys):
    result = main([*SHAPES, "--split", "test", "--seed", "4", "--out", str(tmp_path / "s")])
    manifest = load_manifest(tmp_path / "s")
    assert (manifest.name, manifest.split, manifest.samples) == ("shapes", "test", 3)
    assert result["samples"] == 3 and result["fingerprint"] == manifest.fingerprint
    assert Path(result["manifest"]).is_file() and result["problems"] == {}
    out = capsys.readouterr().out
    assert "problems: none" in out and out.endswith(f"--data.test {tmp_path / 's'}\n")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["--data.train", "{out}"]),
        ("val", ["--data.train", "TRAINING_SET", "--data.val", "{out}"]),
        ("test", ["--data.train", "TRAINING_SET", "--data.test", "{out}"]),
    ],
)
def test_next_command_uses_the_set_as_its_split_says(tmp_path, capsys, split, expected):
    out = tmp_path / "my set"
    main(["--source=shapes", "--count=1", "--size=64", f"--split={split}", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: 1 image in 1 shard, ")
    next_words = shlex.split(lines[-1])
    assert next_words[:4] == ["next:", "python", "-m", "jobs.train"]
    assert next_words[4:] == [word.format(out=out) for word in expected]


def test_default_shard_limits_are_those_of_the_converter():
    assert prepare_options.SHARD_SAMPLES == MAX_SHARD_SAMPLES
    assert prepare_options.SHARD_MIB * 2**20 == MAX_SHARD_BYTES


def test_splits_of_shapes_differ(tmp_path):
    sets = [
        main([*SHAPES, "--split", split, "--out", str(tmp_path / split)])["fingerprint"]
        for split in ("train", "test")
    ]
    assert sets[0] != sets[1]


def test_classes_in_a_given_order_or_from_another_set(tmp_path):
    names = ["triangle", "star", "square", "cross", "circle"]
    main([*SHAPES, "--classes", ",".join(names), "--out", str(tmp_path / "a")])
    main([*SHAPES, "--classes-from", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    assert load_manifest(tmp_path / "b").classes == names


def test_voc_is_converted_and_problems_are_reported(shared, tmp_path, capsys):
    root = str(shared / "data/mini")
    main(["--source", "voc", "--root", root, "--split", "test", "--out", str(tmp_path / "v")])
    assert load_manifest(tmp_path / "v").samples == 4
    given = ["--classes", "person,cat", "--out", str(tmp_path / "p"), "--name", "people"]
    result = main(["--source", "voc", "--root", root, "--split", "train", *given])
    assert result["name"] == "people" and result["problems"] == {}
    assert result["excluded_boxes"]["bottle"] > 0
    assert "left out by --classes: " in capsys.readouterr().out


def write_yolo(root, labels, names="[cat, dog]"):
    """Write a YOLO data set with one text of labels per image."""
    for number, text in enumerate(labels):
        for folder, data in (("images", JPEG), ("labels", text.encode())):
            (root / folder).mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if folder == "images" else "txt"
            (root / folder / f"{number}.{suffix}").write_bytes(data)
    (root / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    return ["--source", "yolo", "--root", str(root), "--split", "train"]


def test_many_lost_objects_are_named_in_a_line(tmp_path, capsys):
    good = "0 .5 .5 .2 .2\n"
    options = write_yolo(tmp_path / "y", [good * 1 + "0 9 9 9 9\n" * 2])
    result = main([*options, "--out", str(tmp_path / "out")])
    assert result["lost_objects"] == 2
    assert (
        "warning: lost 2 of 3 objects (67 %); the commonest reason, 2 x: line 2: a "
        "coordinate is over 1"
    ) in capsys.readouterr().out
    lines = "".join(f"0 .5 .5 .2 .{i}\n" for i in range(11, 20))
    options = write_yolo(tmp_path / "z", [lines + "0 9 9 9 9\n"])
    assert main([*options, "--out", str(tmp_path / "few")])["lost_objects"] == 1
    assert "warning" not in capsys.readouterr().out


def test_labels_in_pixels_make_no_empty_set(tmp_path):
    options = write_yolo(tmp_path / "y", ["0 20 15 10 8\n", "0 20 15 10 8\n"])
    with pytest.raises(UserError, match=r"none of 2 objects is usable; .* 2 x: line 1: a coord"):
        main([*options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_class_numbers_that_count_from_one_are_reported(tmp_path, capsys):
    options = write_yolo(tmp_path / "y", ["1 .5 .5 .2 .2\n", "2 .5 .5 .2 .2\n"])
    main([*options, "--out", str(tmp_path / "out")])
    assert "the labels look numbered from 1, and then every box has" in capsys.readouterr().out
    options = write_yolo(tmp_path / "z", ["1 .5 .5 .2 .2\n0 .5 .5 .1 .1\n", "2 .5 .5 .2 .2\n"])
    main([*options, "--out", str(tmp_path / "zero")])
    assert "numbered from 1" not in capsys.readouterr().out


def test_manifest_is_small_whatever_classes_leaves_out(tmp_path):
    lines = "".join(f"1 .5 .5 .2 {i / 50_000}\n" for i in range(1, 20_001))
    options = write_yolo(tmp_path / "y", ["0 .5 .5 .2 .2\n" + lines])
    main([*options, "--classes", "cat", "--out", str(tmp_path / "out")])
    assert load_manifest(tmp_path / "out").excluded_boxes == {"dog": 20_000}
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 100_000


NEW_NAMES = ["--rename", "dog=animal", "--rename", "cat=animal", "--rename", "cow=bull"]


def write_voc(root, names):
    """Write a VOC data set of one image with an object of each name."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages/a.jpg").write_bytes(JPEG)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{5 + i}</xmin><ymin>5</ymin><xmax>90</xmax>"
        "<ymax>90</ymax></bndbox></object>"
        for i, name in enumerate(names)
    )
    (root / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    return ["--source", "voc", "--root", str(root), "--split", "train"]


def write_coco(root, names):
    """Write a COCO data set of one image with an object of each name."""
    (root / "images").mkdir(parents=True)
    (root / "images/a.jpg").write_bytes(JPEG)
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 1, "category_id": 10 * i, "bbox": [5 + i, 5, 50, 50]}
            for i in range(len(names))
        ],
    }
    (root / "a.json").write_text(json.dumps(tree))
    return [
        *("--source", "coco", "--images", str(root / "images")),
        *("--annotations", str(root / "a.json")),
    ]


def write_yolo_names(root, names):
    lines = "".join(f"{i} .5 .5 .2 .{i + 1}\n" for i in range(len(names)))
    return write_yolo(root, [lines], json.dumps(names))


@pytest.mark.parametrize("write", [write_voc, write_coco, write_yolo_names])
def test_classes_are_renamed_and_merged(tmp_path, write):
    options = write(tmp_path / "source", ["bird", "cat", "cow", "dog"])
    main([*options, *NEW_NAMES, "--out", str(tmp_path / "a")])
    manifest = load_manifest(tmp_path / "a")
    assert manifest.classes == ["bird", "animal", "bull"]
    assert manifest.boxes_per_class == {"bird": 1, "animal": 2, "bull": 1}
    assert manifest.renamed == {"dog": "animal", "cat": "animal", "cow": "bull"}
    assert manifest.category_ids == ([0, 10, 20] if write is write_coco else None)
    main([*options, *NEW_NAMES, "--classes", "bull,animal", "--out", str(tmp_path / "b")])
    manifest = load_manifest(tmp_path / "b")
    assert manifest.boxes_per_class == {"bull": 1, "animal": 2}
    assert manifest.excluded_boxes == {"bird": 1} and not manifest.problem_counts
    with pytest.raises(UserError, match="unknown class 'cats'; known: bird, cat, cow, dog"):
        main([*options, "--rename", "cats=x", "--out", str(tmp_path / "c")])


def test_renaming_swaps_names_and_numbers_classes_without_yaml(tmp_path):
    options = write_yolo_names(tmp_path / "source", ["cat", "dog", "cow"])
    swap = ["--rename", "cat=dog", "--rename", "dog=cat", "--rename", "cow=a=b"]
    main([*options, *swap, "--out", str(tmp_path / "a")])
    assert load_manifest(tmp_path / "a").classes == ["dog", "cat", "a=b"]
    (tmp_path / "source/data.yaml").unlink()
    given = ["--classes", "x,y,z", "--rename", "y=x"]
    main([*options[:4], "--split", "images", *given, "--out", str(tmp_path / "b")])
    assert load_manifest(tmp_path / "b").boxes_per_class == {"x": 2, "z": 1}


def test_strict_permits_the_kinds_that_are_allowed(tmp_path):
    options = [*write_coco(tmp_path / "source", ["cat"]), "--strict"]
    (tmp_path / "source/images/b.jpg").write_bytes(JPEG)
    with pytest.raises(UserError, match="--strict rejects 1 problem; the first: b.jpg: file unus"):
        main([*options, "--out", str(tmp_path / "out")])
    result = main([*options, "--allow", "file unused", "--out", str(tmp_path / "out")])
    assert result["problems"] == {"file unused": 1}


def test_coco_is_converted(shared, tmp_path):
    folder = shared / "data/mini"
    options = ["--images", str(folder / "JPEGImages")]
    options += ["--annotations", str(folder / "annotations/instances_all.json")]
    result = main(["--source", "coco", *options, "--split", "val", "--out", str(tmp_path / "c")])
    assert result["samples"] == 20 and result["split"] == "val" and len(result["classes"]) == 80
    assert load_manifest(tmp_path / "c").category_ids[-1] == 90


def test_shapes_may_be_small_and_many(tmp_path):
    limits = ["--object-sides", "4,8", "--max-objects", "30"]
    main([*SHAPES, *limits, "--out", str(tmp_path / "small")])
    shards = ShardSet(tmp_path / "small")
    samples = [parse_sample(shards.read_json(index), 5) for index in range(3)]
    boxes = [box for sample in samples for box in sample.boxes]
    assert max(len(sample.boxes) for sample in samples) > 6
    assert max(x2 - x1 for x1, _, x2, _ in boxes) <= 9


@pytest.mark.parametrize("text", ["8", "24,8", "a,b", "0,8"])
def test_wrong_object_sides_are_rejected(tmp_path, text):
    with pytest.raises(UserError, match=f"'{text}' is not MIN,MAX in pixels, such as 8,24"):
        main([*SHAPES, "--object-sides", text, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "voc", "--root", "x"], "--source voc needs --split"),
        (["--source", "voc", "--split", "train"], "--source voc needs --root"),
        (["--source", "coco", "--images", "x"], "--source coco needs --annotations"),
        (["--source", "yolo", "--root", "x"], "needs --split NAME, or --split-by RATIO"),
        ([*SHAPES, "--split-by", "0.5"], "--split-by cannot be used with --source shapes"),
        (
            ["--source", "voc", "--root", "x", "--split", "a", "--seed", "1"],
            "--seed cannot be used with --source voc without --split-by",
        ),
        (
            [*SHAPES, "--compare-with", "nowhere"],
            r"nowhere: not a shard set \(manifest\.json not found\)",
        ),
        (
            [*SHAPES, "--object-sides", "8,80"],
            "sides of objects from 8 to 80 pixels in images of 64",
        ),
        (
            ["--source", "yolo", "--root", "x", "--split", "a", "--object-sides", "8,9"],
            "--object-sides cannot be used with --source yolo",
        ),
        ([*SHAPES, "--root", "x"], "--root cannot be used with --source shapes"),
        (
            ["--source", "voc", "--root", "no", "--split", "train"],
            "--root no: no such directory or archive",
        ),
        ([*SHAPES, "--classes", "a,,b"], "empty or repeated name"),
        ([*SHAPES, "--rename", "star=a", "--rename", "star=b"], "--rename names a class twice"),
        ([*SHAPES, "--allow", "note"], "--allow has no effect without --strict"),
        ([*SHAPES, "--strict", "--allow", "all"], "'all': unknown kind; known: member skipped, "),
        (
            [*SHAPES, "--classes-from", "nowhere"],
            r"nowhere: not a shard set \(manifest\.json not found\)",
        ),
        ([*SHAPES, "--classes", "cube", "--strict"], "--classes leaves out all objects: c"),
    ],
)
def test_wrong_combinations_of_options_raise(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main([*options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://host/set", "--out 'https://host/set' is not .*; name a folder, or a prefix such"),
        ("s3://bucket/set?region=x", r"s3://bucket/set: a shard set is a plain prefix"),
    ],
)
def test_uri_that_cannot_be_written_is_not_a_folder(tmp_path, monkeypatch, uri, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main([*SHAPES, "--out", uri])
    assert not list(tmp_path.iterdir())


def test_file_uri_is_its_folder(tmp_path):
    result = main([*SHAPES, "--out", f"file://{tmp_path}/a b/set"])
    assert load_manifest(tmp_path / "a b/set").samples == result["samples"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--count=0", "--count: '0' is not a whole number from 1"),
        ("--seed=-1", "--seed: '-1' is not a whole number from 0 to"),
        ("--seed=2147483648", "--seed: '2147483648' is not a whole number from 0 to"),
        ("--split-by=1", "--split-by: '1' is not a number between 0 and 1"),
        ("--split-by=nan", "--split-by: 'nan' is not a number between 0 and 1"),
        ("--workers=0", "--workers: '0' is not a whole number from 1"),
        ("--count=many", "--count: 'many' is not a whole number from 1"),
        ("--surce=voc", "unknown option --surce; did you mean --source"),
        ("--source=kitti", "invalid choice: 'kitti'"),
    ],
)
def test_wrong_values_name_the_option(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        main([*SHAPES, option, "--out", str(tmp_path)])


def test_command_prints_json_and_one_line_errors(tmp_path):
    command = [sys.executable, "-m", "jobs.prepare", *SHAPES, "--out", str(tmp_path / "s")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["samples"] == 3 and "next: " in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith("error: --out") and "--overwrite" in again.stderr


@pytest.fixture
def yolo(tmp_path, shared):
    """Return the folder of the mini set as a YOLO data set."""
    from pipeline.data.transforms.decode import decode_image

    root = tmp_path / "yolo"
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    tree = json.loads((shared / "data/mini/annotations/instances_all.json").read_text())
    numbers = {row["id"]: i for i, row in enumerate(sorted(tree["categories"], key=_id))}
    names = [row["name"] for row in sorted(tree["categories"], key=_id)]
    (root / "data.yaml").write_text(json.dumps({"train": "images/train", "names": names}))
    for image in tree["images"]:
        data = (shared / "data/mini/JPEGImages" / image["file_name"]).read_bytes()
        height, width = decode_image(data).shape[:2]
        (root / "images/train" / image["file_name"]).write_bytes(data)
        lines = []
        for row in tree["annotations"]:
            if row["image_id"] == image["id"]:
                x, y, w, h = row["bbox"]
                place = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(" ".join(map(str, (numbers[row["category_id"]], *place))))
        name = Path(image["file_name"]).with_suffix(".txt")
        (root / "labels/train" / name).write_text("\n".join(lines))
    return root


def _id(row):
    return row["id"]


def test_yolo_archives_give_the_same_bytes_as_the_folder(yolo, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(yolo, "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(yolo.rglob("*")):
            archive.write(path, f"set/{path.relative_to(yolo)}")
    shards = set()
    for number, place in enumerate((yolo, tmp_path / "set.tar/set", tmp_path / "set.zip/set")):
        out = tmp_path / f"out{number}"
        main(["--source", "yolo", "--root", str(place), "--split", "train", "--out", str(out)])
        shards.add((out / "shard-000000.tar").read_bytes())
    assert len(shards) == 1


def test_yolo_and_coco_give_the_same_boxes(yolo, shared, tmp_path):
    coco = ["--source", "coco", "--images", str(shared / "data/mini/JPEGImages")]
    coco += ["--annotations", str(shared / "data/mini/annotations/instances_all.json")]
    main([*coco, "--out", str(tmp_path / "c")])
    main(
        ["--source", "yolo", "--root", str(yolo), "--split", "train", "--out", str(tmp_path / "y")]
    )
    assert load_manifest(tmp_path / "c").classes == load_manifest(tmp_path / "y").classes
    boxes = []
    for folder in ("c", "y"):
        shards = ShardSet(tmp_path / folder)
        samples = [json.loads(shards.read(i).json) for i in range(len(shards))]
        boxes.append({Path(s["file_name"]).name: (s["labels"], s["boxes"]) for s in samples})
    assert boxes[0].keys() == boxes[1].keys()
    for name, (labels, places) in boxes[0].items():
        assert boxes[1][name][0] == labels
        assert np.allclose(np.reshape(boxes[1][name][1], -1), np.reshape(places, -1), atol=1e-6)


def test_voc_archives_give_the_same_bytes_as_the_folder(shared, tmp_path):
    root = shared / "data/mini"
    with tarfile.open(tmp_path / "mini.tar", "w") as tar:
        tar.add(root, "VOCdevkit/VOC2012")
    with zipfile.ZipFile(tmp_path / "mini.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, f"mini/{path.relative_to(root)}")
    shards = set()
    for number, place in enumerate((root, tmp_path / "mini.tar", tmp_path / "mini.zip/mini")):
        out = tmp_path / f"out{number}"
        main(["--source", "voc", "--root", str(place), "--split", "train", "--out", str(out)])
        shards.add((out / "shard-000000.tar").read_bytes())
    assert len(shards) == 1
    coco = ["--source", "coco", "--images", str(tmp_path / "mini.zip/mini/JPEGImages")]
    coco += ["--annotations", str(tmp_path / "mini.zip/mini/annotations/instances_all.json")]
    assert main([*coco, "--out", str(tmp_path / "c")])["samples"] == 20


def test_split_by_writes_two_sets_and_compare_with_finds_leaks(shared, tmp_path, capsys):
    root = str(shared / "data/mini")
    options = ["--source", "voc", "--root", root, "--split-by", "0.75", "--out"]
    result = main([*options, str(tmp_path / "a"), "--seed", "1", "--shard-samples", "4"])
    train, val = (load_manifest(tmp_path / "a" / split) for split in ("train", "val"))
    assert [one["samples"] for one in result["sets"]] == [15, 5] == [train.samples, val.samples]
    assert train.classes == val.classes and (train.split, val.split) == ("train", "val")
    assert f"--data.train {tmp_path}/a/train --data.val {tmp_path}/a/val" in capsys.readouterr().out
    again = main([*options, str(tmp_path / "b"), "--seed", "1"])
    assert [s["fingerprint"] for s in again["sets"]] == [s["fingerprint"] for s in result["sets"]]
    leaky = ["--source", "voc", "--root", root, "--split", "val", "--out", str(tmp_path / "v")]
    compared = ["--compare-with", str(tmp_path / "a/train")]
    with pytest.raises(UserError, match="leak: looks like .* of mini train"):
        main([*leaky, *compared, "--strict"])
    found = main([*leaky, *compared])["problems"]["leak"]
    listed = (shared / "data/mini/ImageSets/Main/val.txt").read_text().split()
    shards = ShardSet(tmp_path / "a/train")
    ids = {json.loads(shards.read(i).json)["image_id"] for i in range(len(shards))}
    assert found == len(ids & set(listed)) > 0


def test_full_disk_at_val_keeps_finished_train_shards(shared, tmp_path, monkeypatch):
    options = ["--source", "voc", "--root", str(shared / "data/mini"), "--split-by", "0.5"]
    options += ["--out", str(tmp_path / "out")]
    run, made = ShardTask.run, []

    def full(self, tick):
        made.append(Path(self.folder).parents[1].name)
        if made[-1] == "val":
            raise OSError(errno.ENOSPC, "No space left on device", self.folder)
        return run(self, tick)

    with monkeypatch.context() as patch:
        patch.setattr(ShardTask, "run", full)
        with pytest.raises(UserError, match="No space left on device; no shard set was written"):
            main(options)
    monkeypatch.setattr(
        ShardTask, "run", lambda self, tick: made.append("again") or run(self, tick)
    )
    assert [one["samples"] for one in main(options)["sets"]] == [10, 10]
    assert made == ["train", "val", "again"]


def test_full_disk_at_second_manifest_keeps_all_shards(shared, tmp_path, monkeypatch):
    options = ["--source", "voc", "--root", str(shared / "data/mini"), "--split-by", "0.5"]
    options += ["--out", str(tmp_path / "out")]
    run, made = ShardTask.run, []

    def full(manifest, folder):
        if manifest.split == "val":
            raise OSError(errno.ENOSPC, "No space left on device", folder)
        write_manifest(manifest, folder)

    monkeypatch.setattr(
        ShardTask, "run", lambda self, tick: made.append(self.folder) or run(self, tick)
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pipeline.data.conversion.staging"], "write_manifest", full)
        with pytest.raises(UserError, match="the same command continues from the finished shards"):
            main(options)
    assert [one["samples"] for one in main(options)["sets"]] == [10, 10]
    assert len(made) == 2


@pytest.mark.integration
def test_number_of_workers_does_not_change_the_bytes(tmp_path, shared):
    root = str(shared / "data/mini")
    options = ["--source", "voc", "--root", root, "--split-by", "0.75", "--shard-samples", "4"]
    for workers in ("1", "2"):
        main([*options, "--workers", workers, "--out", str(tmp_path / workers)])
    files = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*")]
    assert len(files) == 2 * 7 + 2
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_strict_with_split_by_writes_neither_set(voc_with_a_bad_box, tmp_path):
    options = ["--source", "voc", "--root", str(voc_with_a_bad_box), "--split-by", "0.5"]
    with pytest.raises(UserError, match="--strict rejects .* problems?; the first: "):
        main([*options, "--strict", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out/*/*"))


@pytest.fixture
def voc_with_a_bad_box(shared, tmp_path):
    root = Path(shutil.copytree(shared / "data/mini", tmp_path / "bad"))
    for path in root.glob("Annotations/*2.xml"):
        path.chmod(0o644)
        path.write_text(path.read_text().replace("<xmin>", "<xmin>9", 1))
    return root


def test_few_large_shards_give_a_hint(tmp_path, capsys, monkeypatch):
    main([*SHAPES, "--out", str(tmp_path / "a")])
    assert "are few" not in capsys.readouterr().out
    monkeypatch.setattr("jobs.prepare.LARGE_SET_BYTES", 8 * 2**10)
    main([*SHAPES, "--out", str(tmp_path / "b")])
    assert "shards: 1 are few" in capsys.readouterr().out
