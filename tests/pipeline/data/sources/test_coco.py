"""COCO annotation files: ids with gaps, crowds, areas, and the report of faults."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.checks.objects import check_objects
from pipeline.data.shards.manifest import read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.coco import coco_source
from pipeline.data.sources.coco_file.outline import outline_box
from pipeline.errors import UserError


@pytest.fixture
def convert_coco(tmp_path, convert_source):
    def run(images, annotations, **options):
        source = coco_source(images, annotations)
        manifest = convert_source(
            source, tmp_path / "out", category_ids=source.category_ids, **options
        )
        shards = ShardSet(tmp_path / "out")
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        return manifest, samples

    return run


def test_category_ids_with_gaps_become_consecutive_labels(coco, convert_coco):
    rows = [{"bbox": [1, 2, 3.5, 4]}, {"bbox": [5, 6, 7, 8], "category_id": 90, "area": 20.5}]
    manifest, (sample,) = convert_coco(*coco(rows))
    assert manifest.classes == ["person", "brush"] and manifest.category_ids == [1, 90]
    assert sample.image_id == "7" and sample.labels == [0, 1]
    assert sample.boxes == [(1, 2, 4.5, 6), (5, 6, 12, 14)]
    assert sample.area == [14, 20.5]  # the area of the box if the annotation has none


def test_crowds_are_kept_and_marked(coco, convert_coco):
    crowd = {"bbox": [0, 0, 40, 30], "iscrowd": 1, "segmentation": {"counts": [9], "size": [1]}}
    _, (sample,) = convert_coco(*coco([{"bbox": [1, 2, 3, 4]}, crowd]))
    assert sample.crowd == [False, True]


def test_rounding_at_the_border_is_clipped_silently(coco, convert_coco):
    manifest, (sample,) = convert_coco(*coco([{"bbox": [-0.01, 0, 40.03, 30]}]))
    assert sample.boxes == [(0, 0, 40, 30)] and manifest.problem_counts == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"bbox": [5, 5, 0, 9]},
            "instances.json image 7: box dropped: person [5.0, 5.0, 5.0, 14.0]",
        ),
        ({"bbox": [-5, 5, 10, 9]}, "instances.json image 7: box clipped: person [-5.0, 5.0, 5.0"),
        (
            {"bbox": [float("nan"), 5, 1, 9]},
            "image 7: box dropped: person [nan, 5.0, nan, 14.0]: not",
        ),
        (
            {"bbox": [5, 5]},
            "instances.json: box dropped: annotation 3: bbox is not four numbers: [5, 5]",
        ),
        ({"bbox": None}, "instances.json: box dropped: annotation 3: "),
        ({}, "instances.json: box dropped: annotation 3: no bbox"),
        ({"bbox": [1, 1, 2, 2], "category_id": 5}, "annotation 3: unknown category 5"),
        (
            {"bbox": [1, 1, 2, 2], "category_id": "brush"},
            "unknown category 'brush', which is a name; the id is needed",
        ),
        (
            {"bbox": [1, 1, 2, 2], "image_id": "one.jpg"},
            "image 'one.jpg' is not listed, but is a file; the id is needed",
        ),
        ({"bbox": [1, 1, 2, 2], "image_id": 8}, "annotation 3: image 8 is not listed"),
    ],
)
def test_invalid_annotations_are_reported(coco, convert_coco, tmp_path, row, reason):
    _, (sample,) = convert_coco(*coco([{"bbox": [1, 2, 3, 4]}, {"id": 3, **row}]))
    (problem,) = read_problems(tmp_path / "out")
    assert reason in str(problem)
    assert len(sample.boxes) == (2 if "clipped" in reason else 1)


def test_unusable_images_are_reported(coco, convert_coco, tmp_path):
    images = [
        {"id": 7, "file_name": "one.jpg"},
        {"id": 8, "file_name": "none.jpg"},
        {"id": 9, "file_name": "../instances.json"},
        {"file_name": "x.jpg"},
        {"id": 7, "file_name": "one.jpg"},
    ]
    _, samples = convert_coco(*coco([], images=images))
    assert [s.image_id for s in samples] == ["7"]
    assert [str(p).split(" in ")[0] for p in read_problems(tmp_path / "out")] == [
        "one.jpg: note: listed 2 times with the same id; kept once",
        "none.jpg: image skipped: image file not found",
        "../instances.json: image skipped: image file not found",
        "x.jpg: image skipped: no id",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": None, "file_name": "two.jpg"}, "two.jpg: image skipped: no id in instances.json"),
        (
            {"id": True, "file_name": "two.jpg"},
            "id in instances.json is not a number or text: True",
        ),
        (
            {"id": 8, "file_name": 123},
            "123: image skipped: file_name in instances.json is not text",
        ),
        ({"id": 8, "file_name": "One.JPG"}, "one.jpg fits, but is listed itself; one of the two"),
    ],
)
def test_row_that_names_no_image_is_reported_once(coco, convert_coco, tmp_path, row, reason):
    one = {"id": 7, "file_name": "one.jpg"}
    images, file = coco([], images=[one, row])
    if row["file_name"] == "two.jpg":
        shutil.copy(images / "one.jpg", images / "two.jpg")
    convert_coco(images, file)
    [problem] = lines(tmp_path / "out")
    assert reason in problem


def test_categories_with_one_name_are_merged(coco, convert_coco, tmp_path):
    categories = [{"id": i, "name": n} for i, n in [(0, "cell"), (3, "cell"), (5, "other")]]
    rows = [{"bbox": [1, 1, 2, 2 + i], "category_id": i} for i in (0, 3, 5)]
    manifest, (sample,) = convert_coco(*coco(rows, categories=categories))
    assert manifest.classes == ["cell", "other"] and sample.labels == [0, 0, 1]
    assert "category 3 has the same name as 0" in next(read_problems(tmp_path / "out")).reason


def test_invalid_annotation_files_raise_user_errors(coco, tmp_path):
    images, file = coco([])
    with pytest.raises(UserError, match=r"--images .*none: no such directory or archive"):
        coco_source(tmp_path / "none", file)
    with pytest.raises(UserError, match=r"--annotations .*none\.json: No such file"):
        coco_source(images, tmp_path / "none.json")
    file.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        coco_source(images, file)
    for tree in ([], {"images": []}, {"images": [1], "annotations": [], "categories": []}):
        file.write_text(json.dumps(tree))
        with pytest.raises(UserError, match="not a COCO instances file"):
            coco_source(images, file)
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}]}))
    with pytest.raises(UserError, match="a category lacks its id or name"):
        coco_source(images, file)


def test_mini_coco_converts_completely(shared, convert_coco):
    folder = shared / "data/mini"
    truth = json.loads((folder / "annotations/instances_all.json").read_text())
    manifest, samples = convert_coco(
        folder / "JPEGImages", folder / "annotations/instances_all.json"
    )
    assert manifest.samples == 20 and manifest.boxes == 209 and len(manifest.classes) == 80
    assert manifest.category_ids[-1] == 90 and manifest.samples_without_objects == 1
    assert sum(sum(s.crowd) for s in samples) == 5
    by_id = {s.image_id: s for s in samples}
    got = sorted((s.image_id, a) for s in by_id.values() for a in s.area)
    assert got == sorted((str(a["image_id"]), a["area"]) for a in truth["annotations"])


def test_images_in_a_subfolder_are_found_unless_ambiguous(coco, convert_coco, tmp_path):
    images, file = coco([])
    images.rename(tmp_path / "deep")
    (tmp_path / "top/data").mkdir(parents=True)
    (tmp_path / "deep").rename(tmp_path / "top/data/train")
    manifest, _ = convert_coco(tmp_path / "top", file)
    assert manifest.samples == 1 and manifest.problem_counts == {}
    shutil.copytree(tmp_path / "top/data/train", tmp_path / "top/data/val")
    with pytest.raises(UserError, match=r"several folders; name one: .*top/data/train, .*/val"):
        coco_source(tmp_path / "top", file)
    (tmp_path / "other").mkdir()
    with pytest.raises(
        UserError, match=r"other: none of the 1 listed images was found, for example one\.jpg"
    ):
        coco_source(tmp_path / "other", file)


def test_segmentations_are_dropped_while_parsing(coco, monkeypatch):
    images, file = coco([{"bbox": [1, 2, 3, 4], "segmentation": [[0.5] * 1000]}])
    trees = []
    read = json.loads
    monkeypatch.setattr(
        "pipeline.data.sources.coco_file.tree.json.loads",
        lambda *a, **k: trees.append(read(*a, **k)) or trees[-1],
    )
    coco_source(images, file)
    assert set(trees[0]["annotations"][0]) == {"image_id", "category_id", "bbox"}


@pytest.mark.parametrize("broken", [[], {}, None, 1.5])
def test_ids_of_a_wrong_type_are_reported(coco, convert_coco, broken):
    images = [{"id": 7, "file_name": "one.jpg"}, {"id": broken, "file_name": "one.jpg"}]
    rows = [{"bbox": [1, 2, 3, 4], "image_id": broken}, {"bbox": [1, 1, 2, 2]}]
    manifest, (sample,) = convert_coco(*coco(rows, images=images))
    assert len(sample.boxes) == 1
    assert manifest.problem_counts == {"box dropped": 1, "image skipped": 1}


def lines(folder):
    return [str(p) for p in read_problems(folder) if p.kind != "near duplicate"]


BOXES = [{"bbox": [1, 2, 3, 4]}, {"bbox": [5, 6, 7, 8]}]
KEPT = [(1, 2, 4, 6), (5, 6, 12, 14)]


@pytest.mark.parametrize("listed", [7, 7.0, "7"])
@pytest.mark.parametrize("used", [7, 7.0, "7"])
def test_ids_as_number_text_and_float_are_the_same(coco, convert_coco, tmp_path, listed, used):
    manifest, (sample,) = convert_coco(
        *coco(
            [{**row, "image_id": used, "category_id": used} for row in BOXES],
            images=[{"id": listed, "file_name": "one.jpg"}],
            categories=[{"id": listed, "name": "cat"}],
        )
    )
    assert sample.image_id == "7" and sample.boxes == KEPT
    assert manifest.category_ids == [7] and not lines(tmp_path / "out")


def test_ids_may_be_text(coco, convert_coco, tmp_path):
    images = [{"id": "a", "file_name": "one.jpg"}, {"id": "01", "file_name": "none.jpg"}]
    categories = [{"id": "x", "name": "dog"}, {"id": "b", "name": "cat"}, {"id": 5, "name": "cow"}]
    rows = [{**row, "image_id": "a", "category_id": "b"} for row in BOXES]
    rows.append({"bbox": [1, 1, 2, 2], "image_id": 1, "category_id": "b"})
    manifest, (sample,) = convert_coco(*coco(rows, images=images, categories=categories))
    assert manifest.classes == ["cow", "cat", "dog"] and manifest.category_ids is None
    assert sample.labels == [1, 1] and sample.image_id == "a"
    assert "image 1 is not listed" in lines(tmp_path / "out")[0]  # 01 is another id than 1


@pytest.mark.parametrize("wrong", [None, True, [], {}, 1.5, float("nan"), ""])
def test_ids_that_are_none_are_reported(coco, convert_coco, tmp_path, wrong):
    rows = [*BOXES, {"bbox": [1, 1, 2, 2], "category_id": wrong}]
    convert_coco(*coco([*rows, {"bbox": [1, 1, 2, 2], "image_id": wrong}]))
    text = "\n".join(lines(tmp_path / "out"))
    assert "category_id is not an id" in text and "image_id is not an id" in text
    images, file = coco([], categories=[{"id": wrong, "name": "cat"}])
    with pytest.raises(UserError, match="a category lacks its id or name"):
        coco_source(images, file)


@pytest.mark.parametrize(
    ("flag", "crowd", "reported"),
    [
        *((flag, False, False) for flag in (0, 0.0, "0", False, "false", "False", "no", None)),
        *((flag, True, False) for flag in (1, 1.0, "1", True, "true", "TRUE")),
        *((flag, False, True) for flag in (2, "maybe", "", [], 0.5)),
    ],
)
def test_iscrowd_is_read_in_every_spelling(coco, convert_coco, tmp_path, flag, crowd, reported):
    _, (sample,) = convert_coco(*coco([{**BOXES[0], "iscrowd": flag}, BOXES[1]]))
    assert sample.crowd == [crowd, False]
    assert [": repaired: iscrowd is " in line for line in lines(tmp_path / "out")] == (
        [True] if reported else []
    )


@pytest.mark.parametrize("area", [0, 0.0, -3, "wide", True, float("nan"), 10**400, 1e9])
def test_impossible_areas_are_those_of_the_boxes(coco, convert_coco, tmp_path, area):
    _, (sample,) = convert_coco(*coco([{**row, "area": area} for row in BOXES]))
    assert sample.area == [12, 56]
    assert lines(tmp_path / "out")[0].startswith("instances: note: 2 areas not positive")


def test_numbers_may_be_text(coco, convert_coco):
    _, (sample,) = convert_coco(*coco([{"bbox": ["1", "2.0", "3", 4], "area": "5.5"}]))
    assert sample.boxes == [(1, 2, 4, 6)] and sample.area == [5.5]


@pytest.mark.parametrize(
    "bbox", ["1,2,3,4", [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "w"], [1, 2, None, 4], {"x": 1}, 7]
)
def test_boxes_that_are_not_four_numbers_are_reported(coco, convert_coco, tmp_path, bbox):
    convert_coco(*coco([*BOXES, {"bbox": bbox}]))
    (problem,) = lines(tmp_path / "out")
    assert "box dropped: annotation None: bbox is not four numbers: " in problem


def test_unusable_boxes_of_any_value_are_one_reason(coco, tmp_path, convert_coco):
    wrong = ["1,2,3", "a: b", "x" * 99, [1], [1, [2, "x"]], [1.5] * 40, {"x": 1}, {}, True, -7]
    rows = [{"bbox": value} for value in wrong]
    with pytest.raises(UserError, match=r"none of 10 .* commonest reason, 10 x: annotation None: "):
        convert_coco(*coco(rows))


def test_one_id_for_two_files_skips_both(coco, convert_coco, tmp_path, encode):
    images, file = coco(
        [*BOXES, {"bbox": [1, 1, 9, 9], "image_id": 8}],
        images=[
            {"id": 7, "file_name": "two.jpg"},
            {"id": "7", "file_name": "three.jpg"},
            {"id": 8, "file_name": "one.jpg"},
        ],
    )
    for name in ("two", "three"):
        (images / f"{name}.jpg").write_bytes(encode())
    manifest, (sample,) = convert_coco(images, file)
    assert sample.file_name == "one.jpg" and manifest.lost_objects == 2
    assert [line.partition(" (")[0] for line in lines(tmp_path / "out")] == [
        "two.jpg: image skipped: id 7 stands for 2 files",
        "three.jpg: image skipped: id 7 stands for 2 files",
    ]


def test_one_file_with_several_ids_becomes_one_sample(coco, convert_coco, tmp_path):
    images = [{"id": i, "file_name": n} for i, n in [(3, "one.jpg"), (7, "./one.jpg")]]
    rows = [{**BOXES[0], "image_id": 3}, BOXES[1]]
    manifest, (sample,) = convert_coco(*coco(rows, images=images))
    assert sample.image_id == "3" and sample.boxes == KEPT and manifest.samples == 1
    assert lines(tmp_path / "out") == [
        "one.jpg: repaired: listed with the ids 3, 7; merged into one sample"
    ]


def test_category_names_are_stripped_and_unique(coco, convert_coco, tmp_path):
    categories = [{"id": 1, "name": "cat "}, {"id": 2, "name": " Cat"}, {"id": 3, "name": 7}]
    manifest, _ = convert_coco(*coco(BOXES, categories=categories))
    assert manifest.classes == ["cat", "Cat", "7"]
    assert "'cat', 'Cat' look like one class" in lines(tmp_path / "out")[0]
    for wrong in (None, True, ["cat"], {}, " "):
        images, file = coco(BOXES, categories=[{"id": 1, "name": wrong}])
        with pytest.raises(UserError, match="a category lacks its id or name"):
            coco_source(images, file)
    images, file = coco(BOXES, categories=[{"id": 1, "name": "a"}, {"id": "1", "name": "b"}])
    with pytest.raises(UserError, match="category 1 is both 'a' and 'b'"):
        coco_source(images, file)


def test_category_that_only_groups_is_noted(coco, convert_coco, tmp_path):
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    convert_coco(*coco(BOXES, categories=categories), strict=True)
    assert lines(tmp_path / "out") == [
        "instances.json: note: class 'animals' has no box and only groups the others; "
        "--classes cat,dog leaves it out"
    ]
    rows = [*BOXES, {"bbox": [1, 1, 2, 2], "category_id": 0}]
    convert_coco(*coco(rows, categories=categories), overwrite=True)
    assert not lines(tmp_path / "out")


POLYGON = [[10, 5, 30, 5, 30, 15], [12, 2, 14, 4]]
RUNS = {"size": [30, 40], "counts": [10 * 30 + 2, 5, 25, 5, 40 * 30 - 337]}


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        (POLYGON, (10, 2, 30, 15)),
        (POLYGON[0], (10, 5, 30, 15)),
        (RUNS, (10, 2, 12, 7)),
    ],
)
@pytest.mark.parametrize("bbox", [{}, {"bbox": []}, {"bbox": None}, {"bbox": [0, 0, 0, 0]}])
def test_outlines_give_the_boxes_that_are_absent(
    coco, convert_coco, tmp_path, segmentation, box, bbox
):
    _, (sample,) = convert_coco(*coco([{"segmentation": segmentation, **bbox}]), strict=True)
    assert sample.boxes == [box]
    assert lines(tmp_path / "out") == [
        "instances.json: note: 1 annotation without bbox; the box of the segmentation is used"
    ]


def test_compressed_masks_give_their_boxes():
    encoded = mask.frPyObjects(RUNS, 30, 40)["counts"].decode()
    assert outline_box({"size": [30, 40], "counts": encoded}) == [10, 2, 2, 5]


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1, 2, 3]],
        [["a", 2, 3, 4]],
        "text",
        {},
        {"size": [30, 40], "counts": [5, -1]},
        {"size": [30, 40], "counts": [5, 5]},
        {"size": [0, 40], "counts": []},
        {"size": [30, 40], "counts": "\x7f"},
        {"size": [30, 40], "counts": "o"},  # the last number has no end
        {"size": ["30", 40], "counts": "0"},
    ],
)
def test_unreadable_outlines_give_no_box(segmentation):
    assert outline_box(segmentation) is None


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "a list, as files of detections"),
        (
            {"images": [], "annotations": [{"segments_info": []}], "categories": []},
            "a panoptic file; give the instances file",
        ),
        ({"images": [], "annotations": [{"caption": "a"}]}, "a captions file; give the instances"),
        ({"images": [], "annotations": [], "categories": {"1": "cat"}}, "categories is not a list"),
        ({"images": [], "annotations": {}, "categories": []}, "annotations is not a list"),
        ({"images": [], "annotations": []}, "no list of categories"),
        ({"images": [3], "annotations": [], "categories": []}, "item 1 of images is not an object"),
        ("text", "not a JSON object"),
    ],
)
def test_other_files_are_named(coco, tree, fault):
    images, file = coco([])
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=f"not a COCO instances file: {fault}"):
        coco_source(images, file)


@pytest.mark.parametrize("field", ["category_id", "image_id"])
@pytest.mark.parametrize("shift", [-1, 1])
def test_ids_that_are_off_by_one_are_reported(coco, convert_coco, tmp_path, encode, field, shift):
    images, file = coco(
        [
            {"bbox": [1, 2, 3, 4 + i], "category_id": i, "image_id": i, field: i + shift}
            for i in (1, 2, 3)
        ],
        images=[{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
        categories=[{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
    )
    for i in (1, 2, 3):
        (images / f"{i}.jpg").write_bytes(encode())
    (images / "one.jpg").unlink()
    convert_coco(images, file)
    more = "more" if shift > 0 else "less"
    assert f"suspicious: every {field} looks 1 {more} than the id that is meant" in "\n".join(
        lines(tmp_path / "out")
    )


def test_names_in_the_place_of_ids_are_one_reason(coco, tmp_path, convert_coco):
    rows = [{**BOXES[0], "category_id": "person"}, {**BOXES[1], "category_id": "brush"}]
    with pytest.raises(UserError, match="the commonest reason, 2 x: .* 'person', which is a name"):
        convert_coco(*coco(rows))
    with pytest.raises(UserError, match="the list of categories is empty"):
        convert_coco(*coco(BOXES, categories=[]))
    listed = [{"id": None, "file_name": "one.jpg"}]
    with pytest.raises(UserError, match="no usable image; the first problem: one.jpg: image skip"):
        convert_coco(*coco(BOXES, images=listed))


def test_all_categories_unknown_is_an_error(coco, tmp_path, convert_coco):
    rows = [{**row, "category_id": 0} for row in BOXES]
    with pytest.raises(
        UserError,
        match="none of 2 objects is usable; the commonest reason, 2 x: annotation None: unknown "
        r"category 0 \(instances\.json\); every category_id looks 1 less",
    ):
        convert_coco(*coco(rows, categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]))
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_not_listed_are_reported(coco, convert_coco, tmp_path, encode):
    images, file = coco(BOXES)
    (images / "more").mkdir()
    for name in ("two.jpg", "more/a.png", "more/b.png", "notes.txt"):
        (images / name).write_bytes(encode())
    convert_coco(images, file)
    assert lines(tmp_path / "out") == [
        "two.jpg: file unused: a picture that instances.json does not list",
        "more: file unused: instances.json lists none of its 2 pictures, such as more/a.png",
    ]
    with pytest.raises(UserError, match="--strict rejects 2 problems"):
        convert_coco(images, file, strict=True, overwrite=True)
    # Other files beside this one may list pictures of the same folder.
    listed = [{"file_name": "data\\two.jpg"}, {"file_name": "b.png"}, {"file_name": "\u00e9.jpg"}]
    (file.parent / "val.json").write_text(json.dumps({"images": listed[:1]}, indent=1))
    listed[1:] = [{"coco_url": f"http://host.org/{row['file_name']}"} for row in listed[1:]]
    (file.parent / "lvis.json").write_text(json.dumps({"images": listed[1:]}))
    (file.parent / "broken.json").write_text('{"file_name": "\\x", "file_name')
    convert_coco(images, file, overwrite=True)
    assert lines(tmp_path / "out") == [
        "more: file unused: instances.json lists none of its 1 pictures, such as more/a.png"
    ]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("images", "train", "val"),
    [
        ("images", "annotations/train.json", "annotations/val.json"),
        ("images", "instances/train/a.json", "instances/val/a.json"),
        ("", "train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("", "train.json", "splits/other/val.json"),
    ],
)
def test_pictures_of_other_splits_are_not_unused(
    coco, convert_coco, tmp_path, encode, images, train, val, zipped
):
    _, file = coco(BOXES)
    root = tmp_path / "set"
    for split, name in ((train, "one.jpg"), (val, "two.jpg")):
        tree = json.loads(file.read_text())
        tree["images"][0]["file_name"] = name
        (root / split).parent.mkdir(parents=True, exist_ok=True)
        (root / split).write_text(json.dumps(tree))
    (root / "images").mkdir()
    for name in ("one.jpg", "two.jpg", "three.jpg"):
        (root / "images" / name).write_bytes(encode())
    unrelated = tmp_path / "unrelated/c.json"
    unrelated.parent.mkdir()
    unrelated.write_text('{"file_name": "three.jpg"}')
    if zipped:
        root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    convert_coco(root / images, root / train)
    [problem] = lines(tmp_path / "out")
    assert problem.partition(":")[0].endswith("three.jpg")


@pytest.mark.parametrize(
    "name",
    [
        "/home/me/data/images/one.jpg",
        "C:\\data\\images\\one.jpg",
        "..\\..\\label-studio\\media\\upload\\4\\one.jpg",
        "images/one.jpg",
        "one.JPG",
        "https://host.org/one.jpg?token=secret",
        "/data/local-files/?d=images/one.jpg",
        "one.png",
    ],
)
def test_images_are_found_as_other_machines_name_them(coco, convert_coco, tmp_path, name):
    rows = [{"id": 7, "file_name": name, "width": 40, "height": 30}]
    _, (sample,) = convert_coco(*coco([{"bbox": [1, 2, 3, 4]}], images=rows))
    assert sample.boxes == [(1, 2, 4, 6)] and "secret" not in sample.to_json().decode()
    problems = list(read_problems(tmp_path / "out"))
    assert problems and {p.kind for p in problems} <= {"note", "repaired"}
    assert all(p.file == "instances.json" for p in problems if "the first: " in p.reason)


@pytest.mark.parametrize("folder", [".", "train2017"])
@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"coco_url": "http://images.cocodataset.org/train2017/one.jpg"}, "train2017/one.jpg"),
        ({"coco_url": "http://host.org/a/b/one.jpg?x", "file_name": ""}, "b/one.jpg"),
        ({"coco_url": "http://host.org/one.jpg"}, "one.jpg"),
        ({"coco_url": "http://host.org/train2017/two.jpg", "file_name": "one.jpg"}, "one.jpg"),
    ],
)
def test_images_without_a_file_name_are_found_by_their_url(coco, convert_coco, folder, row, name):
    rows = [{"id": 7, "width": 40, "height": 30, **row}]
    images, file = coco([{"bbox": [1, 2, 3, 4]}], images=rows)
    (images / folder).mkdir(exist_ok=True)
    (images / "one.jpg").rename(images / folder / "one.jpg")
    _, (sample,) = convert_coco(images, file)
    assert (sample.file_name, sample.boxes) == (name, [(1, 2, 4, 6)])


def test_url_in_the_folder_of_another_split_is_not_resolved(coco):
    url = "http://images.cocodataset.org/train2017/one.jpg"
    images, file = coco([], images=[{"id": 7, "coco_url": url}])
    (images / "val2017").mkdir()
    (images / "one.jpg").rename(images / "val2017/one.jpg")
    with pytest.raises(UserError, match="for example train2017/one.jpg: not found"):
        coco_source(images, file)


def test_two_entries_for_one_file_are_skipped(coco, encode):
    names = ["a/one.jpg", "b/one.jpg", "two.jpg"]
    rows = [{"bbox": [1, 2, 3, 4], "image_id": number} for number in range(3)]
    listed = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    images, file = coco(rows, images=listed)
    (images / "two.jpg").write_bytes(encode())
    records = [image.read_record() for image in coco_source(images, file).images]
    assert [record.image is None for record in records] == [True, True, False]
    assert [len(record.objects) for record in records] == [1, 1, 1]
    assert "also fits b/one.jpg" in records[0].problems[0].reason
    (images / "two.jpg").unlink()
    with pytest.raises(
        UserError, match=r"none of the 3 .*, for example a/one\.jpg: one\.jpg fits, but"
    ):
        coco_source(images, file)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.just(10**400),
    st.floats(width=16),
    st.sampled_from(["", " ", "1", "7", "one.jpg", "nan", "../x", "person"]),
    st.lists(st.one_of(st.integers(-5, 50), st.none(), st.just("3")), max_size=6),
    st.dictionaries(st.sampled_from(["counts", "size"]), st.lists(st.integers(0, 9)), max_size=2),
)


def rows(base):
    """Return a strategy of lists of such rows with some values replaced or absent."""
    changed = st.dictionaries(st.sampled_from([*base, "segmentation"]), ODD, max_size=2)
    absent = st.sets(st.sampled_from(list(base)), max_size=1)
    row = st.tuples(changed, absent).map(
        lambda both: {k: v for k, v in {**base, **both[0]}.items() if k not in both[1]}
    )
    return st.lists(row, max_size=4)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows({"id": 7, "file_name": "one.jpg", "width": 40, "height": 30}),
    rows({"id": 1, "name": "person", "supercategory": "none"}),
    rows({"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 9}),
)
def test_every_annotation_ends_as_an_object_or_as_a_problem(coco, images, categories, annotations):
    folder, file = coco([], images=images, categories=categories)
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": annotations}))
    try:
        source = coco_source(folder, file)
    except UserError:
        return
    records = [image.read_record() for image in source.images]
    dropped = sum(problem.kind == "box dropped" for problem in source.problems)
    assert sum(len(record.objects) for record in records) + dropped == len(annotations)
    for record in records:
        problems = []
        kept = check_objects(record, 40, 30, {"person": 0}, ObjectCounts(), problems)
        lost = [problem for problem in problems if problem.kind in ("box dropped", "duplicate box")]
        others = [item for item in record.objects if item.name != "person"]
        assert len(kept) + len(lost) + len(others) == len(record.objects)
        assert record.image is not None or record.problems
