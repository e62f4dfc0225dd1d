"""The job ``prepare``: its options, its answers, its errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.prepare import main
from pipeline.data.manifest import load_manifest
from pipeline.errors import UserError

SHAPES = ["--source", "shapes", "--count", "3", "--size", "64"]


def test_shapes(tmp_path, capsys):
    result = main([*SHAPES, "--split", "test", "--seed", "4", "--out", str(tmp_path / "s")])
    manifest = load_manifest(tmp_path / "s")
    assert (manifest.name, manifest.split, manifest.samples) == ("shapes", "test", 3)
    assert result["samples"] == 3 and result["fingerprint"] == manifest.fingerprint
    assert Path(result["manifest"]).is_file() and result["problems"] == {}
    out = capsys.readouterr().out
    assert "problems: none" in out and out.endswith(f"--data.test {tmp_path / 's'}\n")


def test_the_splits_of_shapes_differ(tmp_path):
    sets = [
        main([*SHAPES, "--split", split, "--out", str(tmp_path / split)])["fingerprint"]
        for split in ("train", "test")
    ]
    assert sets[0] != sets[1]


def test_classes_of_another_set_or_in_a_given_order(tmp_path):
    names = ["triangle", "star", "square", "cross", "circle"]
    main([*SHAPES, "--classes", ",".join(names), "--out", str(tmp_path / "a")])
    main([*SHAPES, "--classes-from", str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    assert load_manifest(tmp_path / "b").classes == names


def test_voc_and_its_report(shared, tmp_path, capsys):
    root = str(shared / "data/mini")
    main(["--source", "voc", "--root", root, "--split", "test", "--out", str(tmp_path / "v")])
    assert load_manifest(tmp_path / "v").samples == 4
    given = ["--classes", "person,cat", "--out", str(tmp_path / "p"), "--name", "people"]
    result = main(["--source", "voc", "--root", root, "--split", "train", *given])
    assert result["name"] == "people" and result["problems"]["box dropped"] > 0
    assert "unknown class" in capsys.readouterr().out


def test_coco(shared, tmp_path):
    folder = shared / "data/mini"
    options = ["--images", str(folder / "JPEGImages")]
    options += ["--annotations", str(folder / "annotations/instances_all.json")]
    result = main(["--source", "coco", *options, "--split", "val", "--out", str(tmp_path / "c")])
    assert result["samples"] == 20 and result["split"] == "val" and len(result["classes"]) == 80
    assert load_manifest(tmp_path / "c").category_ids[-1] == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "voc", "--root", "x"], "--source voc needs --split"),
        (["--source", "voc", "--split", "train"], "--source voc needs --root"),
        (["--source", "coco", "--images", "x"], "--source coco needs --annotations"),
        ([*SHAPES, "--root", "x"], "--root does not go with --source shapes"),
        (
            ["--source", "voc", "--root", "no", "--split", "train"],
            "--root no: no such folder or archive",
        ),
        ([*SHAPES, "--classes", "a,,b"], "empty or repeated name"),
        ([*SHAPES, "--classes-from", "nowhere"], r"nowhere: no manifest\.json"),
        ([*SHAPES, "--classes", "cube", "--strict"], "unknown class"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main([*options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--count=0", "--count: '0' is not a whole number from 1"),
        ("--seed=-1", "--seed: '-1' is not a whole number from 0"),
        ("--count=many", "--count: 'many' is not a whole number from 1"),
        ("--surce=voc", "unknown option --surce; did you mean --source"),
        ("--source=kitti", "invalid choice: 'kitti'"),
    ],
)
def test_wrong_values_name_the_option(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        main([*SHAPES, option, "--out", str(tmp_path)])


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "jobs.prepare", *SHAPES, "--out", str(tmp_path / "s")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["samples"] == 3 and "next: " in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith("error: --out") and "--overwrite" in again.stderr
