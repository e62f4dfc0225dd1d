"""Checks of objects: against their image, against each other, and of a source as a whole."""

import io
import json

import pytest
from PIL import Image

from pipeline.data.conversion.checks.counts import ObjectCounts
from pipeline.data.conversion.checks.verdict import whole_source_problems
from pipeline.data.conversion.convert import convert, stage_shard_set
from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.shards.problems import Problem
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.record import Object, ParsedImage, Record
from pipeline.errors import UserError

CLASSES = ["cat", "dog"]


def png(seed=0):
    out = io.BytesIO()
    Image.linear_gradient("L").resize((160, 120)).rotate(seed % 7).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def convert_objects(tmp_path):
    """Return ``run([objects of an image], ...)``, which returns manifest, samples and problems."""

    def run(*images, classes=CLASSES, file_name="{}.png", strict=False, record=None):
        data, out = png(), tmp_path / "out"
        items = [
            ParsedImage(
                Record(str(i), file_name.format(i), data, f"{i}.xml", None, rows, **(record or {}))
            )
            for i, rows in enumerate(images)
        ]
        manifest = convert(
            items, [], out, "x", "train", classes, source="voc", strict=strict, overwrite=True
        )
        shards = ShardSet(out)
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        problems = [str(p) for p in read_problems(out) if p.kind != "near duplicate"]
        return manifest, samples, problems

    return run


BOX, OTHER = (10, 20, 60, 80), (70, 30, 140, 100)


def test_the_same_box_of_the_same_class_is_kept_once(convert_objects):
    rows = [Object("cat", BOX), Object("dog", OTHER), Object("cat", BOX), Object("cat", BOX)]
    manifest, (sample,), problems = convert_objects(rows)
    assert sample.boxes == [BOX, OTHER] and sample.labels == [0, 1]
    line = "0.xml: duplicate box: cat [10, 20, 60, 80]: repeats an earlier object; kept once"
    assert problems == [line, line]
    assert manifest.lost_objects == 0 and manifest.boxes == 2


def test_one_box_with_two_classes_is_kept_and_reported(convert_objects):
    _, (sample,), problems = convert_objects([Object("cat", BOX), Object("dog", BOX)])
    assert sample.labels == [0, 1]
    assert problems == [
        "0.xml: suspicious: dog [10, 20, 60, 80]: the same box is also labelled cat; both are kept"
    ]
    with pytest.raises(UserError, match="--strict rejects 1 problem"):
        convert_objects([Object("cat", BOX), Object("dog", BOX)], strict=True)


def test_a_crowd_and_an_object_may_share_a_box(convert_objects):
    manifest, (sample,), problems = convert_objects(
        [Object("cat", BOX), Object("cat", BOX, crowd=True)]
    )
    assert sample.crowd == [False, True] and manifest.crowd_boxes == 1 and not problems
    _, _, problems = convert_objects([Object("cat", BOX, crowd=True)])
    assert problems == [
        "x: suspicious: all 1 kept boxes are crowd regions, which training ignores; check iscrowd"
    ]


@pytest.mark.parametrize("area", [0, -1.0, float("nan"), float("inf"), 160 * 120 + 1.0])
def test_impossible_areas_become_those_of_the_boxes(convert_objects, area):
    rows = [Object("cat", BOX, area=area), Object("dog", OTHER, area=area)]
    _, (sample,), problems = convert_objects(rows)
    assert sample.area == [3000, 4900]
    assert problems == [
        "x: note: 2 areas not positive or larger than the image; replaced by the area of the box"
    ]


def test_possible_areas_are_kept(convert_objects):
    _, (sample,), problems = convert_objects([Object("cat", BOX, area=0.5), Object("dog", OTHER)])
    assert sample.area == [0.5, 4900] and not problems


def test_source_without_any_usable_object_is_rejected(convert_objects, tmp_path):
    rows = [Object("cat", (60, 20, 10, 80)), Object("dog", (60, 30, 10, 80))]
    far = Object("cat", (200, 20, 250, 80))
    with pytest.raises(
        UserError,
        match=r"x train: none of 5 objects is usable; the commonest reason, 4 x: cat \[60, 20, 10, "
        r"80\]: negative width or height; are its corners swapped\? \(0\.xml\); nothing was",
    ):
        convert_objects(rows, [*rows, far])
    assert not (tmp_path / "out").exists()


def test_source_without_labels_is_an_empty_set(convert_objects):
    manifest, _, problems = convert_objects([], [])
    assert manifest.samples == 2 and manifest.boxes == 0 and not problems


def test_objects_of_skipped_images_count_as_lost(tmp_path):
    record = Record("1", "a.png", b"no image", "a.xml", None, [Object("cat", BOX)] * 3)
    gone = Record("2", "b.png", None, "b.xml", None, [Object("cat", BOX), Object("cow", BOX)])
    gone.problems.append(Problem(file="b.png", kind="image skipped", reason="not found"))
    good = Record("3", "c.png", png(), "c.xml", None, [Object("cat", BOX)] * 1)
    staged = stage_shard_set(
        [ParsedImage(one) for one in (record, gone, good)],
        [],
        tmp_path / "out",
        "x",
        "train",
        CLASSES,
        source="voc",
    )
    staged.publish()
    assert load_manifest(tmp_path / "out").lost_objects == 4
    lines = (tmp_path / "out/problems.jsonl").read_text().splitlines()
    assert [json.loads(line)["objects"] for line in lines] == [3, 1]


def test_boxes_in_fractions_are_rejected(convert_objects):
    rows = [Object("cat", (0.1, 0.2, 0.4, 0.7)), Object("dog", (0.0, 0.3, 0.9, 1.0))]
    reason = r"all 2 boxes end within 1\.5 pixels of the top left corner: .* fractions"
    with pytest.raises(UserError, match=reason):
        convert_objects(rows)
    with pytest.raises(UserError, match=reason):  # also if only some are of the chosen classes
        convert_objects(rows, classes=["cat"])
    _, _, problems = convert_objects(rows, [Object("cat", BOX)])
    assert "x: suspicious: 2 of 3 boxes end within 1.5 pixels" in problems[0]
    _, samples, problems = convert_objects(rows, record={"relative": True})
    assert len(samples[0].boxes) == 2 and not problems


def test_fractions_that_were_divided_twice_are_rejected(convert_objects):
    rows = [
        Object("cat", (0.1 / 160, 0.2 / 120, 0.4 / 160, 0.7 / 120)),
        Object("dog", (0, 0, 1, 1)),
    ]
    with pytest.raises(
        UserError,
        match=r"the only box ends within 1\.5 pixels of the top left corner: it looks as if "
        "fractions were divided by the image size again; multiply them by its width and height",
    ):
        convert_objects(rows[:1], record={"relative": True})
    _, _, problems = convert_objects(rows, record={"relative": True})
    assert problems[-1] == (
        "x: suspicious: 1 of 2 boxes end within 1.5 pixels of the top left corner; were they "
        "divided by the image size twice?"
    )
    _, _, problems = convert_objects(rows[:1], *[[rows[1]]] * 11, record={"relative": True})
    assert not [line for line in problems if "suspicious" in line]


def test_boxes_in_percent_are_reported():
    boxes = [(10.0 * i, 20.0, 10.0 * i + 30, 90.0) for i in range(5)]
    for width, expected in ((640, 1), (150, 0)):
        counts = ObjectCounts()
        for box in boxes:
            counts.add_box(box, width, 480, "corners", relative=False)
        found = list(whole_source_problems("x", ["cat"], {"cat": 5}, counts, {}))
        assert [problem.kind for problem in found] == ["suspicious"] * expected
        assert all("are they percentages of the image size?" in p.reason for p in found)


@pytest.mark.parametrize("layout", ["xywh", "cxcywh"])
def test_corners_in_the_place_of_sizes_are_reported(convert_objects, layout):
    def misread(x1, y1, x2, y2):
        if layout == "xywh":
            return Object("cat", (x1, y1, x1 + x2, y1 + y2))
        return Object("cat", (x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2))

    rows = [[misread(*BOX)], [misread(*OTHER)], [misread(*OTHER)]]
    _, _, problems = convert_objects(*rows, record={"layout": layout})
    assert (
        "boxes reach outside their image, and 3 fit it if their numbers are read as"
        in (problems[-1])
    )
    assert "corners x1, y1, x2, y2" in problems[-1]
    # Boxes of the right layout of which some reach outside are not suspicious.
    rows = [[Object("cat", (100, 60, 190, 110))], *[[Object("cat", BOX)]] * 9]
    assert "suspicious" not in "".join(convert_objects(*rows, record={"layout": layout})[2])


def test_centres_in_the_place_of_corners_are_reported(convert_objects):
    rows = [[Object("cat", (cx, cy, cx + 60, cy + 60))] for cx, cy in [(35, 40), (110, 70)]]
    _, _, problems = convert_objects(*rows, record={"layout": "xywh"})
    assert problems[-1] == (
        "x: suspicious: 1 of 2 boxes reach outside their image, and 2 fit it if their numbers are "
        "read as the centre and the size; convert them to the layout of the format"
    )


def test_each_layout_that_fits_is_named(convert_objects):
    written = [(8, 12, 48, 60), (16, 12, 64, 48)]  # as corners, or as the top left corner and size
    rows = [[Object("cat", (x - w / 2, y - h / 2, x + w / 2, y + h / 2))] for x, y, w, h in written]
    _, _, problems = convert_objects(*rows, record={"layout": "cxcywh"})
    assert problems[-1] == (
        "x: suspicious: 2 of 2 boxes reach outside their image, and 2 fit it if their numbers are "
        "read as corners x1, y1, x2, y2, and 2 fit it if their numbers are read as the top left "
        "corner and the size; convert them to the layout of the format"
    )


def test_boxes_for_a_larger_image_are_reported(convert_objects):
    rows = [[Object("cat", (x, 10, x + 20, 100))] for x in (20, 150, 165, 280)]
    _, _, problems = convert_objects(*rows)
    assert problems[-1] == (
        "x: suspicious: 3 of 4 boxes reach outside their image; was it resized or turned after it "
        "was annotated?"
    )


def test_left_out_classes_are_counted_and_not_listed(convert_objects):
    rows = [Object("cat", BOX)] + [Object("dog", (0, 0, 1 + i / 10, 50)) for i in range(400)]
    manifest, (sample,), problems = convert_objects(rows, classes=["cat"], strict=True)
    assert sample.labels == [0] and not problems and manifest.excluded_boxes == {"dog": 400}
    assert manifest.lost_objects == 0
    with pytest.raises(
        UserError,
        match="--classes leaves out all objects: dog 400, cat 1; 'Cat', 'cat' look like one class"
        "; --rename cat=Cat merges them",
    ):
        convert_objects(rows, classes=["Cat"])


def test_names_that_differ_by_case_or_blanks_are_reported(convert_objects):
    names = ["cat", "Cat", "traffic  light", "CAT", "dog", "traffic light"]
    rows = [Object(name, (0, 0, 10 + i, 50)) for i, name in enumerate([*names, "Cat"])]
    manifest, _, problems = convert_objects(rows, classes=names)
    assert problems == [
        "x: suspicious: 'cat', 'Cat', 'CAT' look like one class; --rename cat=Cat --rename CAT=Cat "
        "merges them",
        "x: suspicious: 'traffic  light', 'traffic light' look like one class; "
        "--rename 'traffic  light=traffic light' merges them",
    ]
    assert manifest.classes == names
