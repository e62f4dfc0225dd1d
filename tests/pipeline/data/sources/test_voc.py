"""VOC folders with one fault each: the report names the file and the reason."""

import re
import shutil

import pytest

from pipeline.data.shards.manifest import load_manifest, read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError


@pytest.fixture
def convert_voc(voc, tmp_path, convert_source):
    """Return a function that converts a split: its samples by id, and its problems as text."""

    def run(split="train", **options):
        convert_source(voc_source(voc.root, split), tmp_path / "out", split=split, **options)
        shards = ShardSet(tmp_path / "out")
        samples = [Sample.from_json(shards.read(i).json) for i in range(len(shards))]
        # All images of these tests are the same.
        lines = [str(p) for p in read_problems(tmp_path / "out") if p.kind != "near duplicate"]
        return {s.image_id: s for s in samples}, "\n".join(lines)

    return run


def test_boxes_become_zero_based_with_exclusive_ends(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 40, 30), ("dog", 5, 6, 5, 6, 1)])
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(0, 0, 40, 30), (4, 5, 5, 6)]  # a box of one pixel is valid
    assert samples["a"].labels == [0, 1] and samples["a"].difficult == [False, True]
    assert samples["a"].area == [1200, 1] and samples["a"].crowd == [False, False]
    assert problems == ""


def test_images_without_objects_are_kept(voc, convert_voc, tmp_path):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("none")
    samples, problems = convert_voc()
    assert samples["none"].boxes == [] and problems == ""
    assert load_manifest(tmp_path / "out").samples_without_objects == 1


def test_classes_are_collected_from_all_splits(voc):
    voc.add("a", [("cat", 1, 1, 9, 9)], split="train")
    voc.add("b", [("ant", 1, 1, 9, 9)], split="test")
    assert voc_source(voc.root, "train").classes == voc_source(voc.root, "test").classes
    assert voc_source(voc.root, "train").classes == ["ant", "cat"]


def test_split_lists_with_flags_and_blank_lines(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)], split="other")
    voc.add("my cat 1", [("cat", 1, 1, 9, 9)], split="other")
    voc.add("0", split="other")
    for line in ("a  1", "", "my cat 1 -1", "0"):
        voc.list(line)
    assert list(convert_voc()[0]) == ["a", "my cat 1", "0"]


@pytest.mark.parametrize(
    ("bounds", "kept", "reason"),
    [
        ((10, 10, 9, 20), None, "cat [9.0, 9.0, 9.0, 20.0]: empty"),
        ((20, 10, 10, 20), None, "cat [19.0, 9.0, 10.0, 20.0]: negative width or height; are its"),
        ((50, 10, 60, 20), None, "outside the image of 40x30"),
        ((0, 10, 44, 31), (0, 9, 40, 30), "reaches outside the image of 40x30"),
        (("nan", 10, 20, 20), None, "object 2: xmin is nan, not finite"),
        (("ten", 10, 20, 20), None, "object 2: xmin is 'ten', not a number"),
        (("", 10, 20, 20), None, "object 2: xmin is '', not a number"),
        ((1e308, 10, 1e309, 20), None, "object 2: xmax is inf, not finite"),
    ],
)
def test_invalid_boxes_are_dropped_or_clipped(voc, convert_voc, bounds, kept, reason):
    voc.add("a", [("cat", 1, 1, 9, 9), ("cat", *bounds)])
    samples, problems = convert_voc()
    assert samples["a"].boxes[1:] == ([kept] if kept else [])
    kind = "box clipped" if kept else "box dropped"
    assert re.search(rf"^a\.xml: {kind}: .*{re.escape(reason)}", problems)


def test_objects_without_name_or_box_are_dropped(voc, convert_voc):
    rows = "<object><name> </name></object><object><name>cat</name></object>"
    voc.add("a", xml=f"<annotation>{rows}</annotation>")
    voc.add("b", [("cat", 1, 1, 9, 9)])
    problems = convert_voc(classes=["cat"])[1].splitlines()
    assert problems[:2] == [
        "a.xml: box dropped: object 1: no name",
        "a.xml: box dropped: object 2: cat: no bndbox",
    ]


def test_missing_images_and_annotations_are_reported(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.list("gone")
    voc.list("../../etc/passwd")
    voc.add("bare")
    (voc.root / "Annotations" / "bare.xml").unlink()
    samples, problems = convert_voc()
    assert list(samples) == ["a"]
    assert problems.splitlines() == [
        "gone: image skipped: no such image in JPEGImages",
        "../../etc/passwd: image skipped: no such image in JPEGImages",
        "bare: image skipped: no bare.xml in Annotations",
    ]


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<annotation><object></annotation>", "the XML does not parse: mismatched tag"),
        ("not xml", "the XML does not parse: syntax error"),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
            "declares a DTD or entities, which are not allowed",
        ),
    ],
)
def test_unusable_xml_skips_the_image(voc, convert_voc, xml, reason):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b", xml=xml)
    samples, problems = convert_voc()
    assert list(samples) == ["a"] and problems.startswith("b.xml: image skipped: ")
    assert reason in problems


def test_undecodable_image_is_skipped(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b", image=b"<html>not found</html>")
    samples, problems = convert_voc()
    assert (
        list(samples) == ["a"] and problems == "b.jpg: image skipped: not an image but a web page"
    )


def test_png_named_jpg_with_size_zero_is_noted(voc, convert_voc, encode, tmp_path):
    voc.add("a", [("cat", 1, 1, 44, 9)], image=encode("PNG"), size=(0, 0))
    samples, problems = convert_voc()
    assert (samples["a"].width, samples["a"].height) == (40, 30)
    assert samples["a"].boxes == [(0, 0, 40, 9)]
    assert problems.splitlines()[:2] == [
        "a.jpg: note: content is PNG; stored as .png",
        "a.jpg: note: annotated size is 0x0, the image is 40x30",
    ]
    assert b"000000000.png" in (tmp_path / "out/shard-000000.tar").read_bytes()


def test_other_suffixes_are_found(voc, convert_voc, encode):
    voc.add("a", [("cat", 1, 1, 9, 9)], suffix=".JPEG")
    voc.add("b", [("cat", 1, 1, 9, 9)], suffix=".png", image=encode("PNG"))
    samples, problems = convert_voc()
    assert [s.file_name for s in samples.values()] == ["a.JPEG", "b.png"] and problems == ""


def test_image_listed_twice_is_kept_once(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.list("a")
    samples, problems = convert_voc()
    assert list(samples) == ["a"]
    assert problems == "a.jpg: image skipped: the source lists a twice; the first one is kept"


def test_missing_root_folder_or_split_raises(voc, tmp_path):
    with pytest.raises(UserError, match=r"--root .*nowhere: no such directory or archive"):
        voc_source(tmp_path / "nowhere", "train")
    voc.add("a", [("cat", 1, 1, 9, 9)])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"--root .*bare: not a VOC data set: no folder Annot"):
        voc_source(tmp_path / "bare", "train")
    with pytest.raises(UserError, match=r"--split trian: .*available: train"):
        voc_source(voc.root, "trian")


@pytest.mark.parametrize(
    ("xml_folder", "image_folder"), [("annotations", "images"), ("set", "set"), (".", ".")]
)
def test_layouts_of_annotation_tools_are_read(voc, convert_voc, tmp_path, xml_folder, image_folder):
    voc.add("b", [("cat", 1, 1, 9, 9)])
    voc.add("a", [("dog", 1, 1, 9, 9)])
    (tmp_path / "own" / xml_folder).mkdir(parents=True)
    (tmp_path / "own" / image_folder).mkdir(parents=True, exist_ok=True)
    for path in (*voc.root.glob("Annotations/*"), *voc.root.glob("JPEGImages/*")):
        folder = xml_folder if path.suffix == ".xml" else image_folder
        path.rename(tmp_path / "own" / folder / path.name)
    voc.root = tmp_path / "own"
    samples, problems = convert_voc("any name")
    assert list(samples) == ["a", "b"] and samples["b"].labels == [0] and problems == ""


def test_two_data_sets_below_one_root_raise(voc, convert_voc, tmp_path):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    for year in ("VOC2007", "VOC2012"):
        shutil.copytree(voc.root, tmp_path / "VOCdevkit" / year)
    with pytest.raises(UserError, match=r"found 2 data sets; name one: .*VOC2007, .*VOC2012$"):
        voc_source(tmp_path / "VOCdevkit", "train")
    (tmp_path / "one").mkdir()
    (tmp_path / "VOCdevkit/VOC2007").rename(tmp_path / "one/VOC2007")
    voc.root = tmp_path / "one"
    assert list(convert_voc()[0]) == ["a"]


def test_bccd_converts_completely(shared, tmp_path, convert_source):
    source = voc_source(shared / "data/bccd", "trainval")
    manifest = convert_source(source, tmp_path / "out", split="trainval")
    assert manifest.samples == 222 and manifest.classes == ["Platelets", "RBC", "WBC"]
    # Two RBC have xmin = xmax and ymin = ymax, which is one pixel with inclusive ends.
    assert manifest.boxes_per_class == {"Platelets": 218, "RBC": 2563, "WBC": 231}
    assert [str(p) for p in read_problems(tmp_path / "out")] == [
        "BloodImage_00038.jpg: near duplicate: looks like BloodImage_00037.jpg"
    ]
    assert manifest.name == "bccd"
