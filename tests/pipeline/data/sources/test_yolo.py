"""YOLO data sets: the layouts that exporters write, and label files with one fault each."""

import numpy as np
import pytest
import yaml

from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.yolo import label_name, yolo_source
from pipeline.data.transforms.decode import decode_image
from pipeline.errors import UserError

GOOD = "0 0.5 0.5 0.5 0.4\n"


@pytest.fixture
def convert_yolo(tmp_path, written):
    """Converts a split and gives its samples by id, and its problems as text."""

    def run(root=None, split="train", classes=None, **options):
        source = yolo_source(root or tmp_path / "y", split, classes)
        written(source, tmp_path / "out", overwrite=True, **options)
        shards = ShardSet(tmp_path / "out")
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        # All pictures of these tests are the same one.
        told = [str(p) for p in shards.manifest.problems if p.kind != "near duplicate"]
        return {s.image_id: s for s in samples}, told

    return run


@pytest.fixture
def make(tmp_path, encode):
    """``make(yaml tree or None, {image name: label text or None})``."""

    def made(tree, images, yaml_at="data.yaml"):
        root = tmp_path / "y"
        for name, text in images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode())
            if text is not None:
                labels = root / label_name(name)
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text(text)
        if tree is not None:
            (root / yaml_at).parent.mkdir(parents=True, exist_ok=True)
            (root / yaml_at).write_text(yaml.safe_dump(tree))
        return root

    return made


def test_label_names():
    assert label_name("images/train/a.jpg") == "labels/train/a.txt"
    assert label_name("x/images/images/b.c.png") == "x/images/labels/b.c.txt"
    assert label_name("obj/a.jpeg") == "obj/a.txt"


LAYOUTS = {
    "ultralytics": ({"path": "../datasets/y", "train": "images/train"}, "images/train/"),
    "roboflow": ({"train": "../train/images", "val": "../valid/images"}, "train/images/"),
    "absolute": ({"path": "/content/y", "train": "images/train"}, "images/train/"),
    "beside": ({"train": "obj"}, "obj/"),
    "everything": ({"train": "."}, "images/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(make, convert_yolo, layout):
    tree, folder = LAYOUTS[layout]
    make({"names": ["cat", "dog"], "nc": 2, **tree}, {f"{folder}a.jpg": GOOD + "1 .1 .1 .2 .2"})
    samples, problems = convert_yolo()
    sample = samples[f"{folder}a"]
    assert sample.boxes == [pytest.approx((10, 9, 30, 21)), pytest.approx((0, 0, 8, 6))]
    assert sample.labels == [0, 1] and problems == []


def test_lists_of_images(make, convert_yolo):
    root = make(
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


def test_without_a_yaml(make, convert_yolo):
    make(None, {"images/train/a.jpg": GOOD, "images/valid/b.jpg": GOOD})
    assert list(convert_yolo(classes=["cat"])[0]) == ["images/train/a"]
    assert list(convert_yolo(classes=["cat"], split="val")[0]) == ["images/valid/b"]
    assert len(convert_yolo(classes=["cat"], split=None)[0]) == 2
    with pytest.raises(UserError, match="give the class names.* with --classes"):
        convert_yolo()


def test_class_numbers_with_gaps_and_a_named_yaml(make, convert_yolo, tmp_path):
    names = {7: "dog", 2: "cat"}
    root = make({"names": names, "train": "images"}, {"images/a.jpg": "7" + GOOD[1:]}, "b.yaml")
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
        ("cat .5 .5 .1 .1", "line 2: 'cat' is no number"),
        ("0 nan .5 .1 .1", "line 2: a value is not finite"),
        ("0 .5 .5 1e999 .1", "line 2: a value is not finite"),
        ("0 .5 .5 .1", "line 2: 4 values; expected class, cx, cy, w, h or a polygon"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 values; expected"),
        ("0 20 15 10 8", "line 2: a coordinate is over 1; they are fractions"),
        (GOOD, "line 2: repeats an earlier line"),
        ("0 .5 .5 0 .1", "cat [20.0, 13.5, 20.0, 16.5]: empty"),
        ("0 .5 .5 -.1 .1", "empty"),
    ],
)
def test_bad_lines(make, convert_yolo, line, reason):
    make({"names": ["cat"], "train": "images"}, {"images/a.jpg": GOOD + line})
    samples, problems = convert_yolo()
    assert len(samples["images/a"].boxes) == 1
    assert len(problems) == 1 and problems[0].startswith("labels/a.txt: box dropped: ")
    assert reason in problems[0]


def test_boxes_over_the_edge_and_polygons(make, convert_yolo):
    lines = "0 .95 .5 .2 .2\n0 .1 .1 .5 .1 .5 .9 .3 .5\n"
    make({"names": ["cat"], "train": "images"}, {"images/a.jpg": lines})
    samples, problems = convert_yolo()
    over, polygon = samples["images/a"].boxes
    assert over == pytest.approx((34, 12, 40, 18)) and polygon == pytest.approx((4, 3, 20, 27))
    assert len(problems) == 1 and "box clipped" in problems[0]


def test_key_points_are_passed_over(make, convert_yolo):
    tree = {"names": ["cat"], "train": "images", "kpt_shape": [2, 3]}
    make(tree, {"images/a.jpg": "0 .5 .5 .5 .4 .1 .1 2 .2 .2 2"})
    samples, problems = convert_yolo()
    assert samples["images/a"].boxes == [pytest.approx((10, 9, 30, 21))] and problems == []


def test_absent_and_empty_label_files(make, convert_yolo):
    images = {"images/a.jpg": GOOD, "images/b.jpg": None, "images/c.jpg": ""}
    make({"names": ["cat"], "train": "images"}, images)
    samples, problems = convert_yolo()
    assert [len(s.boxes) for s in samples.values()] == [1, 0, 0]
    assert problems == [
        "images/b.jpg: repaired: no label file labels/b.txt; taken as an image without objects"
    ]


def test_labels_at_a_wrong_place_are_not_taken_for_empty_images(make, convert_yolo):
    make({"names": ["cat"], "train": "images"}, {"images/a.jpg": None})
    with pytest.raises(UserError, match=r"none of 1 images has .*would be labels/a\.txt"):
        convert_yolo()


def test_labels_mean_the_picture_as_its_orientation_turns_it(make, convert_yolo, encode, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    root = make({"names": ["cat"], "train": "images"}, {"images/a.jpg": GOOD})
    (root / "images/a.jpg").write_bytes(encode(quality=95, exif=exif))
    samples, problems = convert_yolo()
    sample = samples["images/a"]
    assert (sample.width, sample.height) == (30, 40)
    assert sample.boxes == [pytest.approx((7.5, 12, 22.5, 28))]
    stored = decode_image(ShardSet(tmp_path / "out").read(0).image, upright=False)
    upright = decode_image((root / "images/a.jpg").read_bytes())
    assert stored.shape == (40, 30, 3)
    assert np.abs(stored.astype(int) - upright).mean() < 3
    assert "turned upright" in problems[0]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"names": ["a", "b"], "nc": 3}, "nc is 3, but names has 2"),
        ({"names": "cat"}, "neither a list nor numbers with names"),
        ({"names": {"x": "cat"}}, "neither a list nor numbers with names"),
        ({"names": []}, "is empty"),
        ({"names": ["cat", ""]}, "an empty name"),
        ({"names": ["cat"], "val": "images"}, "--split train: not in the YAML .*there are: val"),
        ({"names": ["cat"], "train": "nowhere"}, "no images found of split train"),
    ],
)
def test_yaml_that_cannot_be_used(make, convert_yolo, tree, message):
    make(tree, {"images/a.jpg": GOOD})
    with pytest.raises(UserError, match=message):
        convert_yolo()


def test_yaml_that_does_not_parse_or_asks_for_code(make, convert_yolo):
    root = make(None, {"images/a.jpg": GOOD})
    for text in ("names: [", "names: !!python/object/apply:os.system ['true']"):
        (root / "data.yaml").write_text(text)
        with pytest.raises(UserError, match=r"data\.yaml cannot be read: "):
            convert_yolo()
