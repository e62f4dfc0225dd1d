"""YOLO data sets: the layouts of exporters, and label files with one fault each."""

import numpy as np
import pytest
import yaml

from pipeline.data.shards.manifest import read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.yolo import label_path, yolo_source
from pipeline.data.transforms.decode import decode_image
from pipeline.errors import UserError

GOOD = "0 0.5 0.5 0.5 0.4\n"


@pytest.fixture
def convert_yolo(tmp_path, convert_source):
    """Return a function that converts a split: its samples by id, and its problems as lines."""

    def run(root=None, split="train", classes=None, **options):
        source = yolo_source(root or tmp_path / "y", split, classes)
        convert_source(source, tmp_path / "out", overwrite=True, **options)
        shards = ShardSet(tmp_path / "out")
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        # All images of these tests are the same.
        lines = [str(p) for p in read_problems(tmp_path / "out") if p.kind != "near duplicate"]
        return {s.image_id: s for s in samples}, lines

    return run


@pytest.fixture
def write_data_set(tmp_path, encode):
    """Return ``write_data_set(yaml tree or None, {image name: label text or None})``."""

    def write(tree, images, yaml_at="data.yaml"):
        root = tmp_path / "y"
        for name, text in images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode())
            if text is not None:
                labels = root / label_path(name)
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text(text)
        if tree is not None:
            (root / yaml_at).parent.mkdir(parents=True, exist_ok=True)
            (root / yaml_at).write_text(yaml.safe_dump(tree))
        return root

    return write


def test_label_path_of_an_image():
    assert label_path("images/train/a.jpg") == "labels/train/a.txt"
    assert label_path("x/images/images/b.c.png") == "x/images/labels/b.c.txt"
    assert label_path("obj/a.jpeg") == "obj/a.txt"


LAYOUTS = {
    "ultralytics": ({"path": "../datasets/y", "train": "images/train"}, "images/train/"),
    "roboflow": ({"train": "../train/images", "val": "../valid/images"}, "train/images/"),
    "absolute": ({"path": "/content/y", "train": "images/train"}, "images/train/"),
    "beside": ({"train": "obj"}, "obj/"),
    "everything": ({"train": "."}, "images/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_exporters_are_read(write_data_set, convert_yolo, layout):
    tree, folder = LAYOUTS[layout]
    write_data_set(
        {"names": ["cat", "dog"], "nc": 2, **tree}, {f"{folder}a.jpg": GOOD + "1 .1 .1 .2 .2"}
    )
    samples, problems = convert_yolo()
    sample = samples[f"{folder}a"]
    assert sample.boxes == [pytest.approx((10, 9, 30, 21)), pytest.approx((0, 0, 8, 6))]
    assert sample.labels == [0, 1] and problems == []


def test_lists_of_images_are_read(write_data_set, convert_yolo):
    root = write_data_set(
        {"names": {0: "cat"}, "train": "lists/train.txt"},
        {"images/a.jpg": GOOD, "images/b.jpg": GOOD},
    )
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text("./images/b.jpg\n\n../../etc/passwd\nimages/none.jpg\n")
    samples, problems = convert_yolo()
    assert list(samples) == ["images/b"]
    assert [p.split(": image skipped: not found")[0] for p in problems] == [
        "../../etc/passwd",
        "images/none.jpg",
    ]


def test_data_set_without_yaml_needs_classes(write_data_set, convert_yolo):
    write_data_set(None, {"images/train/a.jpg": GOOD, "images/valid/b.jpg": GOOD})
    assert list(convert_yolo(classes=["cat"])[0]) == ["images/train/a"]
    assert list(convert_yolo(classes=["cat"], split="val")[0]) == ["images/valid/b"]
    assert len(convert_yolo(classes=["cat"], split=None)[0]) == 2
    with pytest.raises(UserError, match="give the class names.* with --classes"):
        convert_yolo()


def test_class_numbers_with_gaps_and_a_named_yaml(write_data_set, convert_yolo, tmp_path):
    names = {7: "dog", 2: "cat"}
    root = write_data_set(
        {"names": names, "train": "images"}, {"images/a.jpg": "7" + GOOD[1:]}, "b.yaml"
    )
    (root / "a.yaml").write_text("names: [x]")
    with pytest.raises(UserError, match="several data sets: a.yaml and b.yaml"):
        convert_yolo()
    samples, _ = convert_yolo(root / "b.yaml")
    assert samples["images/a"].labels == [1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 .5 .5 .1 .1", "line 2: unknown class 1; known: 0 to 0"),
        ("-1 .5 .5 .1 .1", "line 2: unknown class -1"),
        ("0.5 .5 .5 .1 .1", "line 2: unknown class 0.5"),
        ("cat .5 .5 .1 .1", "line 2: 'cat' is not a number"),
        ("0 nan .5 .1 .1", "line 2: a value is not finite"),
        ("0 .5 .5 1e999 .1", "line 2: a value is not finite"),
        ("0 .5 .5 .1", "line 2: 4 values; expected class, cx, cy, w, h or a polygon"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 values; expected"),
        ("0 20 15 10 8", "line 2: a coordinate is over 1; coordinates are fractions"),
        ("0 .5 .5 0 .1", "cat [20.0, 13.5, 20.0, 16.5]: empty"),
        ("0 .5 .5 -.1 .1", "negative width or height"),
    ],
)
def test_invalid_lines_are_dropped(write_data_set, convert_yolo, line, reason):
    write_data_set({"names": ["cat"], "train": "images"}, {"images/a.jpg": GOOD + line})
    samples, problems = convert_yolo()
    assert len(samples["images/a"].boxes) == 1
    assert len(problems) == 1 and problems[0].startswith("labels/a.txt: box dropped: ")
    assert reason in problems[0]


def test_boxes_over_the_edge_are_clipped_and_polygons_boxed(write_data_set, convert_yolo):
    lines = "0 .95 .5 .2 .2\n0 .1 .1 .5 .1 .5 .9 .3 .5\n"
    write_data_set({"names": ["cat"], "train": "images"}, {"images/a.jpg": lines})
    samples, problems = convert_yolo()
    over, polygon = samples["images/a"].boxes
    assert over == pytest.approx((34, 12, 40, 18)) and polygon == pytest.approx((4, 3, 20, 27))
    assert len(problems) == 1 and "box clipped" in problems[0]


def test_keypoints_are_ignored(write_data_set, convert_yolo):
    tree = {"names": ["cat"], "train": "images", "kpt_shape": [2, 3]}
    write_data_set(tree, {"images/a.jpg": "0 .5 .5 .5 .4 .1 .1 2 .2 .2 2"})
    samples, problems = convert_yolo()
    assert samples["images/a"].boxes == [pytest.approx((10, 9, 30, 21))] and problems == []


def test_missing_and_empty_label_files_mean_no_objects(write_data_set, convert_yolo):
    images = {"images/a.jpg": GOOD, "images/b.jpg": None, "images/c.jpg": ""}
    write_data_set({"names": ["cat"], "train": "images"}, images)
    samples, problems = convert_yolo()
    assert [len(s.boxes) for s in samples.values()] == [1, 0, 0]
    assert problems == [
        "images/b.jpg: repaired: label file labels/b.txt not found; "
        "treated as an image without objects"
    ]


def test_data_set_without_any_label_file_raises(write_data_set, convert_yolo):
    write_data_set({"names": ["cat"], "train": "images"}, {"images/a.jpg": None})
    with pytest.raises(UserError, match=r"none of 1 images has .*expected is labels/a\.txt"):
        convert_yolo()


def test_labels_refer_to_the_upright_image(write_data_set, convert_yolo, encode, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    root = write_data_set({"names": ["cat"], "train": "images"}, {"images/a.jpg": GOOD})
    (root / "images/a.jpg").write_bytes(encode(quality=95, exif=exif))
    samples, problems = convert_yolo()
    sample = samples["images/a"]
    assert (sample.width, sample.height) == (30, 40)
    assert sample.boxes == [pytest.approx((7.5, 12, 22.5, 28))]
    stored = decode_image(ShardSet(tmp_path / "out").read(0).image, upright=False)
    upright = decode_image((root / "images/a.jpg").read_bytes())
    assert stored.shape == (40, 30, 3)
    assert np.abs(stored.astype(int) - upright).mean() < 3
    assert problems[0] == "images/a.jpg: note: turned upright by its EXIF orientation 6"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"names": ["a", "b"], "nc": 3}, "nc is 3, but names has 2"),
        ({"names": "cat"}, "must be a list, or a mapping of numbers to names"),
        ({"names": {"x": "cat"}}, "must be a list, or a mapping of numbers to names"),
        ({"names": []}, "is empty"),
        ({"names": ["cat", ""]}, "an empty name"),
        ({"names": ["cat"], "val": "images"}, "--split train: not in the YAML .*available: val"),
        ({"names": ["cat"], "train": "nowhere"}, "no images found of split train"),
    ],
)
def test_unusable_yaml_raises_user_errors(write_data_set, convert_yolo, tree, message):
    write_data_set(tree, {"images/a.jpg": GOOD})
    with pytest.raises(UserError, match=message):
        convert_yolo()


def test_yaml_with_syntax_errors_or_code_raises(write_data_set, convert_yolo):
    root = write_data_set(None, {"images/a.jpg": GOOD})
    for text in ("names: [", "names: !!python/object/apply:os.system ['true']"):
        (root / "data.yaml").write_text(text)
        with pytest.raises(UserError, match=r"data\.yaml cannot be read: "):
            convert_yolo()
