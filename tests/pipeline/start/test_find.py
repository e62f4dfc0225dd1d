"""The format and the splits of a data set are found, or one line says why not."""

import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.start.find import find_data, without_options
from pipeline.start.prepare import prepare_sets
from pipeline.start.splits import divide, use_of
from tests.pipeline.start.conftest import draw, make_coco, make_voc, make_yolo


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("train", "train"),
        ("valid", "val"),
        ("annotations/instances_val2017.json", "val"),
        ("train/_annotations.coco.json", "train"),
        ("trainval", "trainval"),
        ("train_val.json", "trainval"),
        ("train-val2017", "trainval"),
        ("train/valid.json", "val"),
        ("train_valley", "train"),
        ("testing", "test"),
        ("train-[0-9]*.tar", "train"),
        ("data/contest.json", "all"),
    ],
)
def test_use_of_a_split_is_read_from_its_name(name: str, use: str) -> None:
    assert use_of(name) == use


def test_voc_is_found_with_its_lists(voc: Path) -> None:
    found = find_data(voc)
    assert found.kind == "voc" and found.name == "pets"
    assert found.splits.keys() == {"train", "val", "trainval", "test"}
    assert found.source("test").total == 2


def test_voc_lists_of_classes_are_not_splits(voc: Path) -> None:
    (voc / "ImageSets/Main/cat_train.txt").write_text("001 1\n000 -1\n")
    assert find_data(voc).splits["train"] == "train"


def test_coco_is_found_with_a_file_per_split(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"train2017": range(3), "val2017": (3, 4)})
    found = find_data(root)
    assert found.kind == "coco"
    assert found.splits["val"] == "annotations/instances_val2017.json"
    assert found.source("val").total == 2


def test_lvis_is_found_by_the_urls_of_its_images(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"train": range(3), "val": (3, 4), "test": (5,)})
    (root / "images").rename(root / "train2017")
    for split in ("train", "val", "test"):
        path = root / "annotations" / f"instances_{split}.json"
        tree = json.loads(path.read_text())
        for row in tree["images"]:
            row["coco_url"] = f"http://images.cocodataset.org/train2017/{row.pop('file_name')}"
        if split == "test":
            del tree["annotations"]
        path.with_name(f"lvis_v1_{split}.json").write_text(json.dumps(tree))
        path.unlink()
    found = find_data(root)
    assert found.splits == {use: f"annotations/lvis_v1_{use}.json" for use in ("train", "val")}
    assert found.held == {"train2017/005.jpg"}
    source = found.source("val")
    assert [image.file_name for image in source.images] == [
        "train2017/003.jpg",
        "train2017/004.jpg",
    ]
    assert not source.problems  # pictures of the other files are not reported as unused


def test_instances_are_preferred_to_other_files_of_coco(tmp_path: Path) -> None:
    root = make_coco(tmp_path, {"train": range(3)})
    text = (root / "annotations/instances_train.json").read_text()
    (root / "annotations/person_keypoints_train.json").write_text(text)
    found = find_data(root)
    assert found.splits == {"train": "annotations/instances_train.json"}
    assert [note.split()[0] for note in found.notes] == ["annotations/person_keypoints_train.json"]


def test_a_file_of_another_split_is_kept_beside_instances(tmp_path: Path) -> None:
    root = make_coco(tmp_path, {"x": range(4), "test": (3,)})
    (root / "annotations/instances_x.json").rename(root / "annotations/instances.json")
    (root / "annotations/instances_test.json").rename(root / "annotations/test.json")
    found = find_data(root)
    assert found.splits == {"all": "annotations/instances.json", "test": "annotations/test.json"}
    assert not found.notes


@pytest.mark.parametrize("yaml", [True, False])
def test_yolo_is_found_with_its_folders(tmp_path: Path, yaml: bool) -> None:
    root = make_yolo(tmp_path, {"train": range(3), "valid": (3,), "test": (4, 5)}, yaml)
    found = find_data(root, classes=None if yaml else ["cat"])
    assert found.kind == "yolo"
    assert {use: found.source(use).total for use in found.splits} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }


def test_yolo_without_names_says_how_to_give_them(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"train": range(3)}, yaml=False)
    with pytest.raises(UserError, match="--classes"):
        find_data(tmp_path)


def test_archive_is_read_in_place(tmp_path: Path, voc: Path) -> None:
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        tar.add(voc, "pets")
    found = find_data(tmp_path / "pets.tar")
    assert (found.kind, found.name) == ("voc", "pets")
    assert found.source("train").total == 4


def test_two_formats_of_the_same_images_are_one_set(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "both", {"train": range(6), "test": (6, 7)})
    make_coco(root, {"all": range(8)})
    for path in (root / "images").iterdir():  # COCO's images are VOC's
        path.unlink()
    found = find_data(root)
    assert (found.kind, found.also) == ("voc", "COCO")
    assert find_data(root, "coco").kind == "coco"


def test_two_formats_of_other_images_are_one_clear_line(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "both", {}, images=4)
    make_coco(root, {"train": range(10, 13)})
    with pytest.raises(UserError) as error:
        find_data(root)
    assert "two formats: VOC (4 images) and COCO (3 images)" in str(error.value)
    assert "--format voc or coco" in str(error.value)
    assert "\n" not in str(error.value)


def test_existing_shard_sets_are_used_in_place(voc: Path, tmp_path: Path) -> None:
    data = find_data(voc)
    made = prepare_sets(data, divide(data.splits, voc), tmp_path / "out" / "shards")
    again = find_data(tmp_path / "out" / "shards")
    assert again.kind == "shards" and again.splits.keys() == {"train", "val", "test"}
    used = prepare_sets(again, divide(again.splits, voc), tmp_path / "other")
    assert used.uris == made.uris
    assert not (tmp_path / "other" / "train").exists()


def test_validation_images_are_taken_from_a_single_shard_set(voc: Path, tmp_path: Path) -> None:
    data = find_data(voc)
    made = prepare_sets(data, divide(data.splits, voc), tmp_path / "out" / "shards")
    again = find_data(Path(made.uris["train"]))
    sets = prepare_sets(again, divide(again.splits, voc), tmp_path / "other")
    assert sets.manifests["train"].samples + sets.manifests["val"].samples == 4
    assert sets.manifests["train"].classes == made.manifests["train"].classes


def make_tar(path: Path, numbers: Sequence[int], label: str = '"cat"') -> None:
    """Write a WebDataset tar; ``label`` is the JSON of a class."""
    with tempfile.TemporaryDirectory() as work, tarfile.open(path, "w") as tar:
        for number in numbers:
            draw(Path(work) / f"{number}.jpg", number)
            text = f'{{"boxes": [[8, 8, 40, 32]], "labels": [{label}]}}'
            (Path(work) / f"{number}.json").write_text(text)
            for suffix in ("jpg", "json"):
                tar.add(Path(work) / f"{number}.{suffix}", f"{number}.{suffix}")


def test_webdataset_tars_are_found(tmp_path: Path) -> None:
    make_tar(tmp_path / "train-000.tar", range(4))
    make_tar(tmp_path / "val-000.tar", (4, 5))
    found = find_data(tmp_path)
    assert found.kind == "webdataset"
    assert found.source("val").classes == ["cat"]


@pytest.mark.parametrize("kind", [None, "webdataset"])
@pytest.mark.parametrize(("name", "use"), [("data-000.tar", "all"), ("test-000.tar", "test")])
def test_one_webdataset_tar_is_found(tmp_path: Path, kind: str | None, name: str, use: str) -> None:
    make_tar(tmp_path / name, range(3))
    make_tar(tmp_path / "other.tar", (3,))
    found = find_data(tmp_path / name, kind)
    assert (found.kind, list(found.splits), found.name) == ("webdataset", [use], Path(name).stem)
    assert [image.file_name for image in found.source(use).images] == [
        f"{name}/{number}.jpg" for number in range(3)
    ]


def test_one_shard_of_a_set_names_its_folder(tmp_path: Path) -> None:
    make_tar(tmp_path / "shard-000000.tar", range(3), "0")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=f"one shard of a set; give its folder, {tmp_path}"):
        find_data(tmp_path / "shard-000000.tar")


def test_archive_of_other_labels_is_not_webdataset(tmp_path: Path) -> None:
    draw(tmp_path / "0.jpg", 0)
    (tmp_path / "0.json").write_text('{"version": "5", "flags": {}, "shapes": []}')
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.jpg", "0.json"):
            tar.add(tmp_path / name, name)
    with pytest.raises(UserError, match="labels of LabelMe"):
        find_data(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is empty"),
        (lambda root: draw(root / "a.jpg", 0), "has 1 image, but no labels"),
        (lambda root: (root / "notes.txt").write_text("x"), "has no images"),
    ],
)
def test_unusable_folder_is_one_clear_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        find_data(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("0.json", '{"version": "5", "flags": {}, "shapes": []}', "LabelMe, such as 0.json, are"),
        (
            "labels.csv",
            "a,b\n",
            "CSV, such as labels.csv, are not read; convert them to one of VOC",
        ),
        ("0.txt", "\n", "1 label file, all empty"),
        ("notes.txt", "\n", "1 image, but no labels"),
    ],
)
def test_labels_that_are_not_read_are_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    draw(tmp_path / "0.jpg", 0)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_data(tmp_path)
    assert "\n" not in str(error.value)


def test_several_data_sets_are_named_without_options_of_other_jobs(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        make_voc(tmp_path / name, {}, images=2)
    with pytest.raises(UserError, match="found 2 data sets; name one: .*cats, .*dogs") as error:
        find_data(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("--root x: found 2 data sets; name one: a", "x: found 2 data sets; name one: a"),
        ("x: several; --annotations y: empty", "x: several; y: empty"),
        ("--images x: no images; give that as --images", "x: no images; give that as DIR"),
        ("--shards: a.tar: is empty", "a.tar: is empty"),
        ("--split val: a.txt not found", "split val: a.txt not found"),
        ("--out x/train: is a file", "x/train: is a file"),
        ("x: give their names with --classes", "x: give their names with --classes"),
        (
            "x: give --box-format xywh (or --tile)",
            "x: give --box-format xywh (or --tile); only jobs.prepare has --box-format and --tile; "
            "DIR may be the shard sets that it writes",
        ),
    ],
)
def test_errors_name_no_options_of_other_jobs_as_own(text: str, named: str) -> None:
    with pytest.raises(UserError) as error, without_options(), without_options():
        raise UserError(text)
    assert str(error.value) == named


def test_classes_of_numbers_in_tars_name_the_option(tmp_path: Path) -> None:
    make_tar(tmp_path / "data-000.tar", range(3), "0")
    with pytest.raises(UserError, match=r"\.json: label 0 is a number; give .*--classes$") as error:
        find_data(tmp_path).source("all")
    assert str(error.value).startswith("data-000.tar/0.json")


def test_missing_folder_and_format_are_named(tmp_path: Path, voc: Path) -> None:
    with pytest.raises(UserError, match="no such folder or archive"):
        find_data(tmp_path / "x")
    with pytest.raises(UserError, match="no YOLO data set found"):
        find_data(voc, "yolo")


def test_two_sets_of_one_split_are_named(tmp_path: Path) -> None:
    make_coco(tmp_path, {"train": range(3), "train2017": (3, 4)})
    with pytest.raises(UserError, match="two sets of train: .*train.json and .*train2017.json"):
        find_data(tmp_path)
