"""Splits get their use, and are converted once."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.start.facts import Machine, set_facts
from pipeline.start.find import find_data
from pipeline.start.prepare import PreparedSets, prepare_sets
from pipeline.start.propose import places_for, propose
from pipeline.start.splits import divide
from tests.pipeline.start.conftest import make_coco, make_voc, make_yolo

HERE = Path("data")


def prepare(root: Path, out: Path) -> PreparedSets:
    """Convert as the job does."""
    data = find_data(root)
    return prepare_sets(data, divide(data.splits, root), out)


def named(*uses: str) -> dict[str, str]:
    """Return splits whose names are files called like their uses."""
    return {use: f"{use}.json" for use in uses}


def remove_objects(root: Path, split: str) -> None:
    """Empty the annotations of a split of COCO."""
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))


def test_stated_splits_are_used_as_they_are() -> None:
    found = divide(named("train", "val", "trainval", "test"), HERE)
    assert found == ("train", "val", "test", [])


@pytest.mark.parametrize("splits", [{"train", "test"}, {"trainval", "test"}, {"all"}])
def test_validation_is_made_where_there_is_none(splits: set[str]) -> None:
    found = divide(named(*splits), HERE)
    assert found.train in ("train", "trainval", "all")
    assert found.val is None
    assert any("validation images are taken" in note for note in found.notes)


def test_without_a_test_part_the_figures_are_explained() -> None:
    assert any("no test part" in note for note in divide(named("train", "val"), HERE).notes)


@pytest.mark.parametrize(
    ("uses", "unused"),
    [
        (("train", "test", "all"), "all.json is not used: its name says neither"),
        (("train", "trainval", "test"), "trainval.json is not used beside train.json"),
    ],
)
def test_found_split_that_is_not_used_is_named(uses: tuple[str, ...], unused: str) -> None:
    assert any(note.startswith(unused) for note in divide(named(*uses), HERE).notes)


@pytest.mark.parametrize("make", ["voc", "yolo"])
def test_labelled_images_in_no_part_are_named(tmp_path: Path, make: str) -> None:
    splits = {"train": range(4), "val": (4, 5)}
    if make == "voc":
        root = make_voc(tmp_path / "set", splits, images=8)
        folder = "JPEGImages"
    else:
        root = make_yolo(tmp_path / "set", {**splits, "holdout": (6, 7)})
        folder = "images/holdout"
        (root / "data.yaml").write_text("names: [cat]\n")
    notes = prepare(root, tmp_path / "out").notes
    assert notes[0] == f"2 labelled images in no part, so not used: those in {folder}"


@pytest.mark.parametrize("splits", [{"test"}, {"val", "test"}])
def test_never_trains_on_test(splits: set[str]) -> None:
    with pytest.raises(UserError, match="never trained on"):
        divide(named(*splits), HERE)


def test_test_images_are_in_no_other_set(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", {"trainval": range(6), "test": (6, 7)})
    sets = prepare(root, tmp_path / "out")
    counts = {use: manifest.samples for use, manifest in sets.manifests.items()}
    assert counts == {"train": 5, "val": 1, "test": 2}
    assert not any(m.problem_counts.get("leak") for m in sets.manifests.values())


def test_images_in_two_parts_are_trained_on_last(tmp_path: Path) -> None:
    splits = {"trainval": range(8), "val": (4, 5, 6), "test": (6, 7)}
    sets = prepare(make_voc(tmp_path / "pets", splits), tmp_path / "out")
    counts = {use: manifest.samples for use, manifest in sets.manifests.items()}
    assert counts == {"train": 4, "val": 2, "test": 2}
    assert sets.notes == [
        "1 val image also in another part, so left out of val",
        "4 train images also in another part, so left out of train",
    ]


def test_test_images_of_an_undivided_file_are_not_trained_on(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"everything": range(8), "test": (6, 7)})
    sets = prepare(root, tmp_path / "out")
    assert sets.manifests["train"].samples + sets.manifests["val"].samples == 6
    assert sets.manifests["test"].samples == 2


def test_copies_of_test_images_are_not_trained_on(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", {"train": range(6), "val": (6, 7), "test": (8, 9)}, 10)
    for copy, original in ((0, 8), (1, 6), (7, 9)):  # same bytes under another name
        data = (root / f"JPEGImages/{original:03d}.jpg").read_bytes()
        (root / f"JPEGImages/{copy:03d}.jpg").write_bytes(data)
    sets = prepare(root, tmp_path / "out")
    counts = {use: manifest.samples for use, manifest in sets.manifests.items()}
    assert counts == {"train": 4, "val": 1, "test": 2}
    assert sets.notes == [
        "1 val image also in another part, so left out of val",
        "2 train images also in another part, so left out of train",
    ]


@pytest.mark.parametrize("other", ["train", "test"])
def test_val_part_that_is_another_part_is_taken_from_train(tmp_path: Path, other: str) -> None:
    splits = {"train": range(10), "test": (10, 11)}
    root = make_voc(tmp_path / "pets", {**splits, "val": splits[other]}, 12)
    sets = prepare(root, tmp_path / "out")
    counts = {use: manifest.samples for use, manifest in sets.manifests.items()}
    assert counts == {"train": 8, "val": 2, "test": 2}
    note = f"all val images are also in {other}; others are taken from train"
    assert sets.notes == [note]
    assert prepare(root, tmp_path / "out") == sets  # also its notes


def test_all_training_images_in_the_test_part_are_one_clear_line(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", {"train": range(4), "test": range(4)}, 4)
    with pytest.raises(UserError, match="all 4 training images are also in the test part"):
        prepare(root, tmp_path / "out")


def test_images_in_two_shard_sets_are_left_out_of_one(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", {"train": range(6), "val": (6,), "test": (7,)}, 8)
    shards = tmp_path / "out"
    prepare(root, shards)
    (shards / "test").rename(tmp_path / "apart")
    shutil.copytree(shards / "val", shards / "test")
    manifest = shards / "test" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"split": "val"', '"split": "test"'))
    sets = prepare(shards, tmp_path / "again")
    assert {use: manifest.samples for use, manifest in sets.manifests.items()} == {
        "train": 5,
        "val": 1,
        "test": 1,
    }
    assert sets.notes == ["all val images are also in test; others are taken from train"]


def test_sets_are_converted_once_and_again_if_the_source_changes(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(voc, out)
    stamp = (out / "train" / "manifest.json").stat().st_mtime_ns
    assert prepare(voc, out) == first
    assert (out / "train" / "manifest.json").stat().st_mtime_ns == stamp
    (voc / "ImageSets/Main/train.txt").write_text("000\n001\n")
    assert prepare(voc, out).manifests["train"].samples == 2


def test_stopped_conversion_is_completed(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(voc, out)
    (out / "source.json").unlink()  # written last
    (out / "test" / "manifest.json").unlink()
    assert prepare(voc, out) == first


def test_test_part_without_labels_is_left_out(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"train": range(3), "val": (3, 4), "test": (5, 6)})
    remove_objects(root, "test")
    sets = prepare(root, tmp_path / "out")
    assert sets.uris.keys() == {"train", "val"}
    assert sets.notes == [
        "the test part is left out: it has no labels",
        "without a test part, the final figures are of val, which selects the checkpoint, so "
        "flatter a little",
    ]
    (tmp_path / "set/annotations/instances_test.json").unlink()
    assert prepare(root, tmp_path / "out").uris.keys() == {"train", "val"}


def test_yolo_test_part_without_labels_is_left_out(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set", {"train": range(4), "val": (4, 5), "test": (6, 7)})
    shutil.rmtree(root / "labels/test")
    shutil.copy(root / "images/test/006.jpg", root / "images/train/000.jpg")
    sets = prepare(root, tmp_path / "out")
    assert {use: manifest.samples for use, manifest in sets.manifests.items()} == {
        "train": 3,
        "val": 2,
    }
    assert any("the test part is left out" in note for note in sets.notes)


def test_stated_test_part_that_is_missing_is_left_out(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set", {"train": range(4), "valid": (4, 5)})
    with (root / "data.yaml").open("a") as file:
        file.write("test: ../test/images\n")
    sets = prepare(root, tmp_path / "out")
    assert sets.uris.keys() == {"train", "val"}
    note = sets.notes[0]
    assert note.startswith("the test part is left out: ") and "../test/images" in note
    assert "--" not in note


@pytest.mark.parametrize("split", ["train", "val"])
def test_stated_part_that_is_missing_is_an_error(tmp_path: Path, split: str) -> None:
    root = make_yolo(tmp_path / "set", {"train": range(4), "val": (4, 5)})
    shutil.rmtree(root / "images" / split)
    with pytest.raises(UserError, match=f"images/{split} of split {split} is not a folder"):
        prepare(root, tmp_path / "out")


def test_damaged_test_file_is_an_error(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"all": range(8), "test": (6, 7)})
    path = root / "annotations/instances_test.json"
    path.write_text(path.read_text()[:-2])  # which images are not to be trained on is unknown
    with pytest.raises(UserError, match=r"instances_test\.json: not valid JSON"):
        prepare(root, tmp_path / "out")


def test_images_of_a_test_file_without_annotations_are_not_trained_on(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set", {"all": range(8), "test2017": (6, 7)})
    path = root / "annotations/instances_test2017.json"
    tree = json.loads(path.read_text())
    del tree["annotations"]
    path.with_name("image_info_test2017.json").write_text(json.dumps(tree))
    path.unlink()
    data = find_data(root)
    assert data.notes == ["annotations/image_info_test2017.json has no annotations and is left out"]
    sets = prepare(root, tmp_path / "out")
    assert sets.manifests["train"].samples + sets.manifests["val"].samples == 6
    assert sets.notes == [
        "2 train images also in the test part without labels, so left out of train"
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_part_without_objects_is_one_clear_line(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pipeline.start.prepare.stage_shard_set")  # said before the conversion
    root = make_coco(tmp_path / "set", {"train": range(3), "val": (3, 4)})
    remove_objects(root, split)
    with pytest.raises(UserError, match=f"the {split} images have no objects; label them"):
        prepare(root, tmp_path / "out")


@pytest.mark.parametrize("damage", ["one image", "no image can be read"])
def test_refused_data_leave_no_folder(tmp_path: Path, damage: str) -> None:
    root = make_coco(tmp_path / "set", {"train": range(1 if damage == "one image" else 4)})
    for path in (root / "images").iterdir():
        path.write_bytes(b"damaged")
    (tmp_path / "own").mkdir()
    for folder in (tmp_path / "own", tmp_path / "made"):
        with pytest.raises(UserError):
            prepare(root, folder / "shards")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "set"]
    assert not list((tmp_path / "own").iterdir())


def test_set_of_one_image_is_one_clear_line(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "one", {}, images=1)
    with pytest.raises(UserError, match="only 1 image to train on; at least 2") as error:
        prepare(root, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_one_training_image_with_own_val_images_is_enough(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "set", {"train": (0,), "val": (1, 2)}, 3)
    sets = prepare(root, tmp_path / "out")
    assert [manifest.samples for manifest in sets.manifests.values()] == [1, 2]
    facts = set_facts(sets.uris["train"], 2, 0)
    config = propose(facts, Machine(4), sets, places_for("set", tmp_path), {}).config
    assert (config.train.batch_size, config.ray.workers) == (1, 1)


def test_other_files_in_the_folder_of_a_set_are_one_clear_line(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/notes.txt").write_text("")
    with pytest.raises(UserError, match=f"^{tmp_path}/out/train: contains other files"):
        prepare(voc, tmp_path / "out")


def test_folder_that_cannot_be_written_is_one_clear_line(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*; name another folder with --out"):
        prepare(voc, tmp_path / "file" / "out")


def test_images_without_objects_are_reported(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set", {"train": range(10), "val": range(10, 21)})
    for number in range(5):
        (root / f"labels/train/{number:03d}.txt").unlink()
    (root / "labels/val/010.txt").write_text("")
    notes = prepare(root, tmp_path / "out").notes
    text = "{} images have no objects, and are {} as such; label any that have"
    assert "warning: " + text.format("5 of 10 train", "trained on") in notes
    assert text.format("1 of 11 val", "scored") in notes


def test_losses_and_leaks_of_every_part_are_reported(voc: Path, tmp_path: Path) -> None:
    (voc / "JPEGImages/004.jpg").write_bytes(b"damaged")
    with Image.open(voc / "JPEGImages/000.jpg") as image:  # a copy with other bytes
        image.save(voc / "JPEGImages/006.jpg", quality=90)
    notes = prepare(voc, tmp_path / "out").notes
    assert notes == [
        "val: 1 x image skipped; listed in problems.jsonl of its shard set",
        "test: 1 x leak; listed in problems.jsonl of its shard set",
    ]


def test_drawn_validation_images_decode_and_have_objects(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set", {"all": range(10)})
    for number in range(4):
        (root / f"images/all/{number:03d}.jpg").write_bytes(b"damaged")
    for number in range(4, 8):
        (root / f"labels/all/{number:03d}.txt").write_text("0 3 0.5 0.1 0.1\n" * (number % 2))
    (root / "data.yaml").write_text("names: [cat]\n")
    manifests = prepare(root, tmp_path / "out").manifests
    assert (manifests["val"].samples, manifests["val"].samples_without_objects) == (1, 0)
    assert manifests["train"].samples_without_objects == 4


@pytest.mark.parametrize(
    ("data", "label", "message"),
    [
        (b"damaged", "0 0.5 0.5 0.1 0.1\n", "too few can be read; the first fault: .*/000.jpg: "),
        (None, "", "3 of them have no objects; label them"),
        (None, "7 0.5 0.5 0.1 0.1\n", "the first fault: .*unknown class 7; known: 0 to 0"),
    ],
)
def test_images_that_cannot_be_split_name_the_fault(
    tmp_path: Path, data: bytes | None, label: str, message: str
) -> None:
    root = make_yolo(tmp_path / "set", {"all": range(4)}, yaml=False)
    (root / "data.yaml").write_text("names: [cat]\n")
    for number in range(3):
        (root / f"labels/all/{number:03d}.txt").write_text(label)
        if data:
            (root / f"images/all/{number:03d}.jpg").write_bytes(data)
    with pytest.raises(UserError, match=f"no validation images can be taken .*{message}") as error:
        prepare(root, tmp_path / "out")
    assert "\n" not in str(error.value)
