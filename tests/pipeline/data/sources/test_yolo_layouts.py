"""YOLO data sets as tools and people leave them: every file is in a sample or in a problem."""

import shutil
import zipfile

import numpy as np
import pytest

from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.yolo import yolo_source
from pipeline.errors import UserError

GOOD = "0 0.5 0.5 0.5 0.4\n"
DOG = "1 0.5 0.5 0.5 0.4\n"
NAMES = "names: [cat, dog]\n"


@pytest.fixture
def write(tmp_path, encode):
    """Return ``write({name: text, or None for an image})``, which returns the folder."""

    def run(files, root="y"):
        for name, text in files.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.write_bytes(encode())
            else:
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / root

    return run


@pytest.fixture
def read(tmp_path, convert_source):
    """Return a function that converts: names of the objects by image id, and problems as lines."""

    def run(root, split="train", classes=None):
        source = yolo_source(root, split, classes)
        convert_source(source, tmp_path / "out", overwrite=True)
        shards = ShardSet(tmp_path / "out")
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        names = {s.image_id: [source.classes[n] for n in s.labels] for s in samples}
        lines = [str(p) for p in read_problems(tmp_path / "out") if p.kind != "near duplicate"]
        return names, lines

    return run


def pairs(folder, *stems, suffix=".jpg", labels=None):
    """Return images and labels to write: every other object is a dog."""
    labels = folder if labels is None else labels
    images = {f"{folder}{stem}{suffix}": None for stem in stems}
    return images | {f"{labels}{s}.txt": (GOOD, DOG)[n % 2] for n, s in enumerate(stems)}


DARKNET = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"


@pytest.mark.parametrize("given", ["", "obj.data"])
def test_darknet_files_are_read(write, read, given):
    root = write(
        {
            "obj.data": DARKNET,
            "obj.names": "\ufeffcat\r\ndog\r\n",
            "train.txt": "\ufeffdata/obj_train_data/a.jpg\r\ndata/obj_train_data/b.jpg\r\n",
            "valid.txt": "data/obj_train_data/c.jpg",
            **pairs("obj_train_data/", "a", "b", "c"),
        }
    )
    names, problems = read(root / given)
    assert names == {"obj_train_data/a": ["cat"], "obj_train_data/b": ["dog"]}
    assert all(": note: " in problem for problem in problems) and len(problems) == 2
    assert list(read(root / given, "val")[0]) == ["obj_train_data/c"]
    assert list(read(root / given, "valid")[0]) == ["obj_train_data/c"]
    with pytest.raises(UserError, match="--split test: not in obj.data; available: train, val"):
        read(root / given, "test")


@pytest.mark.parametrize(
    "at", ["classes.txt", "labels/classes.txt", "_darknet.labels", "obj.names"]
)
def test_lists_of_names_are_read(write, read, at):
    root = write({at: "cat\ndog\n\n", **pairs("images/", "a", "b", labels="labels/")})
    assert read(root, None) == ({"images/a": ["cat"], "images/b": ["dog"]}, [])


def test_lists_of_names_must_agree(write, read):
    both = {f"{s}/{n}": t for s in ("train", "valid") for n, t in pairs("", "a", "b").items()}
    root = write({**both, "train/classes.txt": "cat\ndog", "valid/classes.txt": "cat\ndog"})
    assert set(read(root)[0]) == {"train/a", "train/b"}
    assert set(read(root, "val")[0]) == {"valid/a", "valid/b"}
    write({"valid/classes.txt": "dog\ncat"})
    with pytest.raises(UserError, match=r"train/classes.txt and valid/classes.txt have different"):
        read(root)


def test_yaml_may_name_a_list_of_names(write, read):
    yaml = "train: images\nnames: data/coco.names\n"
    files = pairs("images/", "a", "b", labels="labels/")
    root = write({"data.yaml": yaml, "coco.names": "cat\ndog", **files})
    assert read(root)[0] == {"images/a": ["cat"], "images/b": ["dog"]}


def test_yaml_given_as_root_reads_the_folder_that_path_names(write, read):
    files = pairs("images/train/", "a", "b", labels="labels/train/")
    root = write({"cfg/data.yaml": f"path: ../\ntrain: images/train\n{NAMES}", **files})
    expected = {"images/train/a": ["cat"], "images/train/b": ["dog"]}
    assert read(root / "cfg/data.yaml") == (expected, [])
    assert read(root) == (expected, [])
    write({"cfg/data.yaml": f"path: ../other\ntrain: images/train\n{NAMES}"})
    with pytest.raises(
        UserError, match=r"no images in .*cfg, and path is '../other'; move the YAML"
    ):
        read(root / "cfg/data.yaml")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        read(root / "none.yaml")
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        for name in ("cfg/data.yaml", *files):
            archive.write(root / name, name)
    write({"cfg/data.yaml": NAMES})
    assert set(read(root / "z.zip")[0]) == set(expected)


ENTRIES = [
    "images/train",
    "./images/train/",
    "../images/train",
    "../../images/train",
    "..\\images\\train",
    "y/images/train",
    "../y/images/train",
    "/content/drive/MyDrive/y/images/train",
    "C:\\Users\\me\\y\\images\\train",
    "Images/Train",
    "images/train/*.jpg",
    "[images/none, images/train]",
]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "path", ["", "path: .", "path: ../datasets/y", "path: /content/y", "path: ~"]
)
def test_entries_of_splits_are_found(write, read, entry, path):
    files = pairs("images/train/", "a", labels="labels/train/")
    other = pairs("images/val/", "b", labels="labels/val/")
    root = write(
        {"data.yaml": f"train: {entry}\nval:\ntest: null\n{path}\n{NAMES}", **files, **other}
    )
    assert [i.image_id for i in yolo_source(root, "train").images] == ["images/train/a"]


def test_each_way_of_repair_is_reported_once_for_all_entries(write):
    files = pairs("train/images/", "a", labels="train/labels/")
    files |= pairs("valid/images/", "b", labels="valid/labels/")
    entries = "train: C:\\x\\train\\images\nval: C:\\x\\valid\\images\n"
    source = yolo_source(write({"data.yaml": entries + NAMES, **files}), None)
    assert source.total == 2 and len(source.problems) == 2
    assert all("data.yaml: note: 2 paths: " in str(problem) for problem in source.problems)


@pytest.mark.parametrize(
    "entry", ["images/validation_set", "valid/images", "imgs/none", "/etc", "../../..", "none.txt"]
)
def test_absent_splits_show_entry_and_place(write, read, entry):
    files = pairs("images/train/", "a", labels="labels/train/")
    root = write({"data.yaml": f"train: images/train\nval: {entry}\n{NAMES}", **files})
    with pytest.raises(UserError) as caught:
        read(root, "val")
    assert f"{entry} of split val is not a folder with images" in str(caught.value)
    assert str(root) in str(caught.value)
    source = yolo_source(root, None)
    assert source.total == 1
    (problem,) = source.problems
    assert str(problem).startswith(f"data.yaml: file unused: {entry} of split val")


def test_images_in_no_split_are_counted(write, read):
    files = pairs("images/a/", "1", labels="labels/a/") | pairs("images/b/", "2", "3")
    root = write({"data.yaml": f"train: images/a\n{NAMES}", **files})
    assert read(root, None)[1] == ["images/b: file unused: 2 images in no split of data.yaml"]


LISTED = [
    "images/a.jpg",
    "/home/me/sets/y/images/b.jpg",
    "/content/drive/MyDrive/y/images/c.jpg",
    "D:\\sets\\y\\images\\d.jpg",
    "https://host.org/y/images/e.jpg?sig=1",
    "data/images/F.JPG",
    "images/g",
    "images/h.jpg\t1",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_with_paths_of_any_machine_are_read(write, read, encoding):
    text = "\r\n".join([*LISTED, "", " images/a.jpg ", "images/gone.jpg"]).encode(encoding)
    files = pairs("images/", *"abcdefghi", labels="labels/")
    root = write({"data.yaml": f"train: train.txt\n{NAMES}", "train.txt": text, **files})
    names, problems = read(root)
    assert list(names) == [f"images/{stem}" for stem in "abcdefgh"]
    lost = [p for p in problems if ": note:" not in p]
    assert len(lost) == 2 and lost[0].startswith("train.txt: repaired: 1 path: found with another")
    assert lost[1].startswith("images/gone.jpg: image skipped: not found in")
    assert any("more than once" in p for p in problems)


def test_list_without_any_image_is_an_error(write, read):
    files = pairs("images/", "a", labels="labels/")
    root = write({"data.yaml": f"train: train.txt\n{NAMES}", "train.txt": "x/b.jpg\n", **files})
    with pytest.raises(
        UserError, match=r"none of the 1 listed images exists; the first: x/b\.jpg: not"
    ):
        read(root)


def test_lists_are_found_by_the_name_of_the_split(write, read):
    files = pairs("images/", "a", "b", labels="labels/")
    root = write({"classes.txt": "cat\ndog", "val.txt": "images/b.jpg", **files})
    assert list(read(root, "val")[0]) == ["images/b"]
    with pytest.raises(UserError, match="no folder train or training in"):
        read(root, "train")


@pytest.mark.parametrize(
    ("image", "label", "kind"),
    [
        ("images/a.jpg", "images/a.txt", None),  # beside, although the folder is called images
        ("Images/a.jpg", "Labels/a.txt", None),
        ("JPEGImages/a.jpg", "labels/a.txt", None),
        ("images/A.JPG", "labels/a.txt", "note"),
        ("images/cafe\u0301.jpg", "labels/caf\u00e9.txt", "note"),
        ("images/a.jpg", "labels/a.jpg.txt", None),
        ("train/img/a.jpg", "train/yolo/a.txt", "repaired"),
    ],
)
def test_label_files_are_found(write, read, image, label, kind):
    root = write({"data.yaml": NAMES, image: None, label: DOG})
    names, problems = read(root, None)
    assert list(names.values()) == [["dog"]]
    assert [p.split(": ")[1] for p in problems] == ([kind] if kind else [])


def test_every_label_file_and_image_is_accounted_for(write, read, tmp_path):
    files = {
        **pairs("images/train/", "a", labels="labels/train/"),
        **pairs("images/train/", "b", suffix=".JFIF", labels="labels/train/"),
        "images/train/c.heic": "x",
        "images/train/d.NEF": "x",
        "labels/train/c.txt": GOOD + DOG,
        "labels/train/gone.txt": GOOD,
        "labels/train/README.txt": "of the labels",
        "labels/train/classes.txt": "cat\ndog",
        "images/val/e.jpg": None,
        "labels/val/other.txt": GOOD,
    }
    root = write({"data.yaml": f"train: images/train\nval: images/val\n{NAMES}", **files})
    source = yolo_source(root, "train")
    assert source.total == 4
    names, problems = read(root)
    lost = load_manifest(tmp_path / "out").lost_objects
    assert set(names) == {"images/train/a", "images/train/b"}
    not_read = "is a format that is not read; convert the image to JPEG or PNG"
    assert [p for p in problems if "note" not in p] == [
        "labels/train/gone.txt: file unused: no image gone with a known suffix beside it or in its "
        "folder of images",
        f"images/train/c.heic: image skipped: HEIC {not_read}",
        f"images/train/d.NEF: image skipped: NEF {not_read}",
    ]
    assert {p.file: p.objects for p in source.problems} == {"labels/train/gone.txt": 1}
    assert lost == 3


def test_other_damaged_yaml_is_ignored(write, read):
    files = pairs("images/", "a", "b", labels="labels/")
    broken = {"notes/hyp.yaml": "names: [", "notes/code.yaml": "names: !!python/object:a.B {}"}
    root = write(
        {"data.yaml": f"train: images\n{NAMES}", "tpl.yaml": "{{ x }}: [", **broken, **files}
    )
    assert read(root)[1] == []
    write({"other.yaml": "names: ["})
    (problem,) = read(root)[1]
    assert problem.startswith("other.yaml: note: ignored: other.yaml cannot be read: ")


def test_names_stay_text(write, read):
    text = "names: {0: no, 1: 007, 2: 12:30, 3: null, 4: on, 5: 1e3}\ntrain: images\n"
    root = write({"data.yaml": text, **pairs("images/", "a", "b", labels="labels/")})
    source = yolo_source(root, "train")
    assert source.classes == ["no", "007", "12:30", "null", "on", "1e3"]
    write({"data.yaml": "names:\n- no\n- 0x1F\n- 2020-01-01\n- ~\ntrain: images\n"})
    assert yolo_source(root, "train").classes == ["no", "0x1F", "2020-01-01", "~"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[cat, [dog]]", r"the name of class 1 must be text, not \['dog'\]"),
        ("{0: {name: cat}}", "the name of class 0 must be text"),
        ("[cat, ]\n- dog", "cannot be read"),
        ("{0: cat, 0: dog}", "the key 0 is repeated"),
        ("{0: cat, 00: dog}", "names has the number 0 twice"),
        ("{0: }", "names has an empty name"),
        ("{1.5: cat}", "'1.5' is not a number"),
        ("none.txt", r"names is none\.txt: not found in"),
    ],
)
def test_unusable_names_are_refused(write, read, names, message):
    root = write({"data.yaml": f"train: images\nnames: {names}\n", **pairs("images/", "a")})
    with pytest.raises(UserError, match=message):
        read(root)


def test_repeated_names_are_merged_and_reported(write, read):
    files = pairs("images/", "a", labels="labels/") | {"labels/a.txt": "2" + GOOD[1:]}
    root = write({"data.yaml": "train: images\nnames: [cat, dog, ' cat ']\n", **files})
    names, problems = read(root)
    assert names == {"images/a": ["cat"]}
    assert problems == ["data.yaml: repaired: classes 0 and 2 are both named cat; merged"]


POINTS = " .5 .5 .4 .4 .45 .45"


@pytest.mark.parametrize(
    ("rows", "keypoints"),
    [
        ([f"0 .5 .5 .6 .6{POINTS}"] * 2, True),
        ([f"0 .5 .5 .6 .6{' .5 .5 2' * 3}"], True),  # three values a point
        (["0 .2 .4 .3 .5" + " .9 .9" * 5] * 3, True),  # points outside of the box
        (["0 .5 .5 .6 .6 .5 .5"] * 2, True),
        (["0 .5 .5 .6 .6 .5 .5", "0 .5 .5 .6 .6 .5 .5 .4 .4"], False),  # lengths differ
        (["0 .1 .1 .5 .1 .5 .9 .1 .9"] * 4, False),  # quadrilaterals
        (["0 .1 .1 .5 .1 .5 .9 .1 .9 .1 .1"] * 4, False),  # closed
        (["0 .1 .2 .5 .1 .5 .9"] * 4, False),  # the box would reach outside
    ],
)
def test_keypoints_are_not_taken_for_polygons(write, read, rows, keypoints):
    files = {f"images/{n}.jpg": None for n in range(len(rows))}
    files |= {f"labels/{n}.txt": row for n, row in enumerate(rows)}
    root = write({"data.yaml": f"train: images\n{NAMES}", **files})
    problems = [str(problem) for problem in yolo_source(root, "train").problems]
    reported = [p for p in problems if "read as a box and keypoints" in p]
    assert len(reported) == keypoints and len(problems) == keypoints
    for text, expected in (("[1, 2]", True), ("null", False)):
        write({"data.yaml": f"train: images\nkpt_shape: {text}\n{NAMES}"})
        source = yolo_source(root, "train")
        assert not source.problems
        x, y, w, h = map(float, rows[0].split()[1:5])
        box = pytest.approx((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        objects = next(iter(source.images)).read_record().objects
        assert (bool(objects) and objects[0].box == box) == expected


def random_rows(kind, count, seed=0):
    """Return rows of outlines around a centre, or of boxes with keypoints inside them."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        centre, size = rng.normal(0.5, 0.03, 2), rng.uniform(0.05, 0.15, 2)
        if kind == "turned boxes":
            angle = rng.uniform(0, 3)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points = centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size @ turn
        elif kind.startswith("polygon"):
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(kind.split()[1])))
            points = centre + np.c_[np.cos(angles), np.sin(angles)] * size
        else:
            inside = rng.uniform(-0.5, 0.5, (int(kind.split()[1]), 2))
            points = np.r_[[centre, size], centre + inside * size]
        rows.append("0 " + " ".join(f"{value:.6f}" for value in points.ravel()))
    return rows


STRAY = [f"0 .{30 + i} .42 .31 .5 .{25 + i} .4 .{28 + i} {'.45' if i else '.1'}" for i in range(10)]


@pytest.mark.parametrize(
    ("rows", "reading"),
    [
        (random_rows("keypoints 1", 20), "box and keypoints"),
        (random_rows("keypoints 2", 20), "box and keypoints"),
        (random_rows("keypoints 5", 20), "box and keypoints"),
        (["0 .5 .5 .6 .6 .5 .5 2 .4 .4 0"], "box and keypoints"),  # flags of visibility
        (random_rows("turned boxes", 20), None),
        (random_rows("polygon 6", 20), None),
        (random_rows("polygon 40", 2), None),
        (random_rows("polygon 3", 20), "polygons"),  # in the middle of the image: like keypoints
        (STRAY, "polygons"),  # one keypoint outside of its box
        (["0 .22 .42 .31 .5 .2 .4 .25 .45"] * 2, "polygons"),
        (["0 .3 .42 .31 .5 .2 .1 .3 .4 .3 .2"], "polygons"),
    ],
)
def test_unclear_rows_are_polygons_and_reported(write, rows, reading):
    files = {"images/a.jpg": None, "labels/a.txt": "\n".join(rows)}
    source = yolo_source(write({"data.yaml": f"train: images\n{NAMES}", **files}), "train")
    readings = [problem.reason.partition("read as ")[2] for problem in source.problems]
    assert all(problem.kind == "suspicious" for problem in source.problems)
    expected = f"a {reading}; state" if reading == "box and keypoints" else f"{reading}, but"
    assert len(readings) == bool(reading) and all(one.startswith(expected) for one in readings)
    values = np.array(rows[0].split()[1:], float)
    points = values.reshape(-1, 2) if reading != "box and keypoints" else values[:4].reshape(2, 2)
    low, high = points.min(0), points.max(0)
    if reading == "box and keypoints":
        low, high = points[0] - points[1] / 2, points[0] + points[1] / 2
    (image,) = source.images
    assert image.read_record().objects[0].box == pytest.approx((*low, *high))


def test_class_numbers_may_count_from_one_in_the_yaml(write, read):
    files = {**pairs("images/", "a", "b", labels="labels/"), "labels/a.txt": "2 .5 .5 .5 .4"}
    root = write({"data.yaml": "train: images\nnames: {1: cat, 2: dog}\n", **files})
    assert read(root) == ({"images/a": ["dog"], "images/b": ["cat"]}, [])


def test_nothing_outside_the_source_is_read(write, read, tmp_path):
    shutil.copytree(write(pairs("images/", "secret", labels="labels/"), "outside"), tmp_path / "o")
    listed = "../outside/images/secret.jpg\n/etc/passwd\nimages/a.jpg\n"
    root = write(
        {
            "data.yaml": f"path: ../outside\ntrain: train.txt\nval: ../outside/images\n{NAMES}",
            "train.txt": listed,
            **pairs("images/", "a", labels="labels/"),
        }
    )
    names, problems = read(root)
    assert list(names) == ["images/a"] and len([p for p in problems if "skipped" in p]) == 2
    assert list(read(root, "val")[0]) == ["images/a"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_of_any_encoding_with_a_mark_is_read(write, read, encoding):
    files = {
        "obj.data": "train = train.txt\nnames = obj.names\n",
        "obj.names": "cat\ndog\n",
        "train.txt": "images/a.jpg\n",
        "labels/a.txt": f"{GOOD}1 .2 .2 .2 .2",
        "labels/b.txt": "0 .5 .5 .6 .6 .5 .5\n" * 2,  # a keypoint; its image does not exist
    }
    encoded = {name: text.encode(encoding) for name, text in files.items()}
    names, problems = read(write({"images/a.jpg": None, **encoded}))
    assert names == {"images/a": ["cat", "dog"]}
    assert len(problems) == 1 and problems[0].startswith("labels/b.txt: file unused")


def test_label_file_that_is_not_text_skips_its_image(write, read):
    files = pairs("images/", "a", "b", labels="labels/") | {"labels/b.txt": b"\xff\x00\x01"}
    names, problems = read(write({"data.yaml": f"train: images\n{NAMES}", **files}))
    assert list(names) == ["images/a"]
    assert problems == [
        "images/b.jpg: image skipped: labels/b.txt cannot be read: not text in UTF-8"
    ]


def test_split_of_a_flat_set_is_only_a_name(write, read):
    root = write({"classes.txt": "cat\ndog\n", **pairs("", "a", "test_1")})
    assert set(read(root, "train")[0]) == {"a", "test_1"}
    write(pairs("val/", "c"))
    with pytest.raises(UserError, match="--split train: no YAML with splits and no folder train"):
        read(root, "train")


def test_lists_may_have_columns_and_comments(write, read):
    files = pairs("images/", *"abcd", "e 1", labels="labels/")
    listed = "# images/a.jpg\nimages/b.jpg 1\nimages/c.jpg labels/c.txt\nimages/d.jpg -1\n"
    root = write(
        {
            "data.yaml": f"train: train.txt\n{NAMES}",
            "train.txt": f"{listed}images/e 1.jpg\n#images/a.jpg\nimages/none.jpg 1\n",
            **files,
        }
    )
    names, problems = read(root)
    assert list(names) == [f"images/{stem}" for stem in ("b", "c", "d", "e 1")]
    assert len(problems) == 1 and problems[0].startswith(
        "images/none.jpg: image skipped: not found"
    )


def test_images_that_share_a_label_file_are_named(write, read):
    files = {"images/a.jpg": None, "images/a.png": None, "labels/a.txt": GOOD}
    names, problems = read(write({"data.yaml": f"train: images\n{NAMES}", **files}))
    assert names == {"images/a": ["cat"]}
    assert problems == [
        "images/a.png: image skipped: shares the label file labels/a.txt with images/a.jpg, which "
        "is kept; rename or remove one of the images"
    ]
