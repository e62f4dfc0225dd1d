"""COCO annotation files: ids with gaps, crowds, areas, and the report of faults."""

import json
import shutil

import pytest

from pipeline.data.shards.manifest import read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.coco import coco_source
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
        ({"bbox": [5, 5]}, "instances.json: box dropped: annotation 3: not enough values"),
        ({"bbox": None}, "instances.json: box dropped: annotation 3: "),
        ({}, "instances.json: box dropped: annotation 3: no bbox"),
        ({"bbox": [1, 1, 2, 2], "category_id": 5}, "annotation 3: unknown category 5"),
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
    assert [str(p) for p in read_problems(tmp_path / "out")] == [
        "none.jpg: image skipped: image file not found",
        "../instances.json: image skipped: no id or file_name in instances.json, "
        "or a path that leads out of --images",
        "x.jpg: image skipped: no id or file_name in instances.json, "
        "or a path that leads out of --images",
        "one.jpg: image skipped: the source lists 7 twice; the first one is kept",
    ]


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
        "pipeline.data.sources.coco.json.loads",
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
