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


OBJECT = (
    "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></object>"
)


@pytest.mark.parametrize(
    "xml",
    [
        f"<annotation><objects>{OBJECT}</objects></annotation>",
        f'<annotation xmlns="http://x.y/z">{OBJECT}</annotation>',
        f"<Annotation>{OBJECT.replace('object>', 'Object>')}</Annotation>",
        f"<annotation>{OBJECT.replace('name>', 'Name>')}</annotation>",
        f"<root>{OBJECT}</root>",
    ],
)
def test_objects_are_found_however_they_are_wrapped(voc, convert_voc, xml):
    voc.add("a", xml=xml)
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(0, 0, 9, 9)] and problems == ""


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "iso-8859-1", "utf-16"])
def test_declared_encodings_are_read(voc, convert_voc, encoding):
    name = "caf\xe9" if encoding == "iso-8859-1" else "\u732b"
    text = f"<annotation>{OBJECT.replace('cat', name)}</annotation>"
    voc.add("a", [])
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)
    (voc.root / "Annotations/a.xml").write_bytes(xml)
    assert voc_source(voc.root, "train").classes == [name]
    assert convert_voc()[1] == ""


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<annotation>\xe9", "the XML is not UTF-8 and declares no other encoding; save it as"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "unknown encoding: none"),
        ("<annotations/>", "a.xml: image skipped: the XML is not VOC"),
    ],
)
def test_missing_class_names_are_explained(voc, convert_voc, xml, reason):
    voc.add("a")
    (voc.root / "Annotations/a.xml").write_bytes(xml.encode("latin-1"))
    start = "train: no class names found: 1 fault in the labels of 1 image, the first: a.xml: image"
    with pytest.raises(UserError, match=rf"{start} .*{re.escape(reason.split('skipped: ')[-1])}"):
        convert_voc()


def test_parts_of_objects_are_not_objects(voc, convert_voc):
    part = f"<part><name>head</name>{OBJECT}</part>"
    voc.add("a", xml=f"<annotation>{OBJECT.replace('</object>', f'{part}</object>')}</annotation>")
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(0, 0, 9, 9)] and problems == ""


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<html><body>404</body></html>", "the XML is not VOC: its root is <html>, not <annot"),
        ("<annotations><image><box/></image></annotations>", "its root is <annotations>, not"),
        (f"<annotation>{OBJECT.replace('object>', 'item>')}</annotation>", "<bndbox> in <item>"),
    ],
)
def test_xml_that_is_not_voc_is_not_an_image_without_objects(voc, convert_voc, xml, reason):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b", xml=xml)
    samples, problems = convert_voc()
    assert list(samples) == ["a"] and problems.startswith("b.xml: image skipped: ")
    assert reason in problems


def test_other_xml_without_an_image_is_named_as_such(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("annotations", xml="<annotations><image><box/></image></annotations>")
    (voc.root / "JPEGImages/annotations.jpg").unlink()
    assert "image skipped: the XML is not VOC" in convert_voc()[1]


def test_each_of_several_boxes_of_an_object_is_read(voc, convert_voc):
    second = "<bndbox><xmin>11</xmin><ymin>1</ymin><xmax>x</xmax><ymax>9</ymax></bndbox>"
    xml = f"<annotation>{OBJECT.replace('</object>', f'{second}</object>')}</annotation>"
    voc.add("a", xml=xml.replace(">x<", ">20<"))
    voc.add("b", xml=xml)
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(0, 0, 9, 9), (10, 0, 20, 9)]
    assert samples["b"].boxes == [(0, 0, 9, 9)]
    assert problems.splitlines() == [
        "a.xml: repaired: object 1: it has 2 bndbox; each is read as an object",
        "b.xml: repaired: object 1: it has 2 bndbox; each is read as an object",
        "b.xml: box dropped: object 1: xmax is 'x', not a number",
    ]


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


@pytest.mark.parametrize(
    ("xml", "image"),
    [
        ("Annotations/{}.xml", "Images/{}.jpg"),
        ("annotations/xmls/{}.xml", "images/{}.jpg"),  # Oxford Pets
        ("ann/{}.jpg.xml", "pics/{}.jpg"),  # the only folders
        ("labels/{}.jpg.xml", "images/{}.jpg"),
        ("Annotations/{}.xml", "JPEGImages/camera/{}.jpg"),
        ("annotations/{}.XML", "images/{}.JPG"),
        ("VOC2007/Annotations/{}.xml", "VOC2007/JPEGImages/{}.jpg"),
    ],
)
def test_layouts_under_other_names_are_read(voc, tmp_path, convert_voc, xml, image):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b.1", [("dog", 1, 1, 9, 9)])
    own = move(
        voc,
        tmp_path / "own",
        {name: (xml.format(name), image.format(name)) for name in ("a", "b.1")},
    )
    voc.root = own
    samples, problems = convert_voc("any name")
    assert list(samples) == ["a", "b.1"] and samples["b.1"].labels == [1]
    assert all(": note: " in line for line in problems.splitlines())


def move(voc, root, names):
    """Move the files of images to other names below a new root, and return it."""
    for image_id, paths in names.items():
        for old, new in zip(
            (f"Annotations/{image_id}.xml", f"JPEGImages/{image_id}.jpg"), paths, strict=True
        ):
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (voc.root / old).rename(root / new)
    return root


SUBFOLDERS = [
    ("Annotations/{}.xml", "JPEGImages/{}.jpg"),
    ("{}.xml", "{}.jpg"),
    ("images/{}.xml", "images/{}.jpg"),
]


@pytest.mark.parametrize(("xml", "image"), SUBFOLDERS)
def test_subfolders_named_like_splits_are_the_splits(voc, tmp_path, convert_voc, xml, image):
    for name in ("a", "b", "c"):
        voc.add(name, [("cat", 1, 1, 9, 9)])
    voc.add("e", [("dog", 1, 1, 9, 9)])
    places = {"a": "train/1", "b": "valid/1", "c": "train/deep/1", "e": "valid/2"}
    names = {k: (xml.format(v), image.format(v)) for k, v in places.items()}
    voc.root = move(voc, tmp_path / "own", names)
    source = voc_source(voc.root, "val")
    assert [i.image_id for i in source.images] == ["valid/1", "valid/2"]
    assert source.classes == ["cat", "dog"]  # of all splits
    assert [i.file_name for i in voc_source(voc.root, "train").images] == [
        "train/1.jpg",
        "train/deep/1.jpg",
    ]
    assert voc_source(voc.root, None).total == 4
    with pytest.raises(UserError, match=r"--split test: no such folder in .*; available: train, v"):
        voc_source(voc.root, "test")
    assert convert_voc("train")[1] == ""


def test_split_folders_with_their_own_annotations(voc, tmp_path):
    for name in ("a", "b"):
        voc.add(name, [("cat", 1, 1, 9, 9)])
    names = {
        "a": ("train/annotations/1.xml", "train/images/1.jpg"),
        "b": ("test/annotations/1.xml", "test/images/1.jpg"),
    }
    root = move(voc, tmp_path / "own", names)
    assert [i.image_id for i in voc_source(root, "test").images] == ["test/1"]
    assert voc_source(root, None).total == 2


def test_pairs_in_subfolders_beside_pairs_on_top_are_read(voc, tmp_path):
    for name in ("a", "b", "c"):
        voc.add(name, [("cat", 1, 1, 9, 9)])
    names = {
        "a": ("a.xml", "a.jpg"),
        "b": ("more/b.xml", "more/b.jpg"),
        "c": ("more/c.xml", "more/c.jpg"),
    }
    source = voc_source(move(voc, tmp_path / "own", names), "train")
    assert [i.image_id for i in source.images] == ["a", "more/b", "more/c"]
    assert source.problems == []


def test_files_outside_split_folders_are_reported(voc, tmp_path):
    for name in ("a", "b", "c"):
        voc.add(name, [("cat", 1, 1, 9, 9)])
    names = {
        "a": ("a.xml", "a.jpg"),
        "b": ("train/b.xml", "train/b.jpg"),
        "c": ("val/c.xml", "val/c.jpg"),
    }
    source = voc_source(move(voc, tmp_path / "own", names), "train")
    assert [i.image_id for i in source.images] == ["train/b"]
    assert [str(p) for p in source.problems] == [
        "own: file unused: 1 XML file outside the folders train, val; left out"
    ]


def test_images_without_xml_are_reported(voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    for name in ("b.jpg", "c.HEIC"):
        (voc.root / "JPEGImages" / name).write_bytes(b"")
    shutil.rmtree(voc.root / "ImageSets")
    assert [str(p) for p in voc_source(voc.root, "train").problems] == [
        "JPEGImages/b.jpg: file unused: there is no XML file for it; left out",
        "JPEGImages/c.HEIC: file unused: there is no XML file for it; left out",
    ]


def test_many_images_without_xml_are_counted(voc, monkeypatch):
    monkeypatch.setattr("pipeline.data.sources.voc.pairs.MAX_LISTED_FILES", 2)
    voc.add("a", [("cat", 1, 1, 9, 9)])
    for number in range(5):
        (voc.root / f"JPEGImages/{number}.jpg").write_bytes(b"")
    problems = voc_source(voc.root, None).problems
    assert [p.file for p in problems] == ["JPEGImages/0.jpg", "JPEGImages/1.jpg", "JPEGImages"]
    assert problems[-1].reason == "3 more images left out"


def test_images_in_no_list_are_counted(voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b", [("cat", 1, 1, 9, 9)], split="val")
    for name in ("c", "e"):
        voc.add(name, [("cat", 1, 1, 9, 9)], split="cat_train")
    (voc.root / "Annotations/e.xml").unlink()
    assert [str(p) for p in voc_source(voc.root, "train").problems] == [
        "ImageSets/Main: note: 2 images in none of the lists of splits; left out"
    ]


@pytest.mark.parametrize(
    ("named", "used"), [("a.png", "a.png"), (r"C:\pics\A.JPG", "a.jpg"), ("other.jpg", "a.jpg")]
)
def test_xml_decides_between_images_of_the_same_name(voc, encode, convert_voc, named, used):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    xml = voc.root / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<size>", f"<filename>{named}</filename><size>"))
    (voc.root / "JPEGImages/a.png").write_bytes(encode("PNG"))
    samples, problems = convert_voc()
    other = {"a.png": "a.jpg", "a.jpg": "a.png"}[used]
    why = "and the XML file names neither" if named == "other.jpg" else "which the XML file names"
    assert samples["a"].file_name == used
    assert problems == f"JPEGImages/{other}: file unused: it is named like {used}, {why}; left out"


def test_each_image_of_the_same_name_may_have_its_xml(voc, encode, tmp_path):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    (voc.root / "JPEGImages/a.png").write_bytes(encode("PNG"))
    shutil.copy(voc.root / "Annotations/a.xml", voc.root / "Annotations/a.png.xml")
    (voc.root / "Annotations/a.xml").rename(voc.root / "Annotations/a.jpg.xml")
    source = voc_source(voc.root, None)
    assert [(i.image_id, i.file_name) for i in source.images] == [
        ("a", "a.jpg"),
        ("a.png", "a.png"),
    ]
    assert source.problems == []


def test_second_xml_of_an_image_is_reported(voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    shutil.copy(voc.root / "Annotations/a.xml", voc.root / "Annotations/a.jpg.xml")
    source = voc_source(voc.root, "train")
    assert [i.file_name for i in source.images] == ["a.jpg"]
    assert [str(p) for p in source.problems] == [
        "Annotations/a.xml: file unused: its image a.jpg belongs to a.jpg.xml; left out"
    ]


def test_images_are_found_by_the_name_in_the_xml(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    xml = voc.root / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<size>", "<filename>photo 7.jpg</filename><size>"))
    (voc.root / "JPEGImages/a.jpg").rename(voc.root / "JPEGImages/photo 7.jpg")
    samples, problems = convert_voc()
    assert samples["a"].file_name == "photo 7.jpg"
    assert "1 XML file named otherwise than the image" in problems


@pytest.mark.parametrize("case", ["A.jpg", "a.JPG"])
def test_names_may_differ_by_case(voc, convert_voc, case):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    (voc.root / "JPEGImages/a.jpg").rename(voc.root / "JPEGImages" / case)
    assert convert_voc()[0]["a"].file_name == case


@pytest.mark.parametrize("suffix", [".jfif", ".jpe"])
def test_further_suffixes_of_jpeg_are_read(voc, convert_voc, suffix):
    voc.add("a", [("cat", 1, 1, 9, 9)], suffix=suffix)
    samples, problems = convert_voc()
    assert samples["a"].file_name == f"a{suffix}" and problems == ""


def test_formats_that_are_not_read_are_named(voc, encode, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    voc.add("b", [("cat", 1, 1, 9, 9)], suffix=".HEIC", image=b"\0\0\0\x18ftypheic")
    voc.add("c", [("cat", 1, 1, 9, 9)], suffix=".nef", image=encode("TIFF"))
    voc.add("d", [("cat", 1, 1, 9, 9)], suffix=".heic", image=encode())  # a phone's JPEG
    samples, problems = convert_voc()
    assert list(samples) == ["a", "d"]
    remedy = "convert the image to JPEG or PNG"
    assert problems.splitlines() == [
        f"b.HEIC: image skipped: HEIC is a format that is not read; {remedy}",
        f"c.nef: image skipped: NEF is a format that is not read; {remedy}",
        "d.heic: note: content is JPG; stored as .jpg",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{}.jpg",
        "{}.xml",
        "JPEGImages/{}.jpg",
        "./JPEGImages/{}.jpg ./Annotations/{}.xml",
        "/home/me/VOC/JPEGImages/{}.jpg",
        "C:\\voc\\JPEGImages\\{}.jpg",
        "{}.jpg\t1",
        "{} 1 2 1",
        "  {}  1\r",
    ],
)
@pytest.mark.parametrize("place", ["ImageSets/Main/train.txt", "ImageSets/train.txt", "train.txt"])
def test_entries_of_lists_are_read_as_tools_write_them(voc, line, place):
    for name in ("a", "b c"):
        voc.add(name, [("cat", 1, 1, 9, 9)])
    shutil.rmtree(voc.root / "ImageSets")
    (voc.root / place).parent.mkdir(parents=True, exist_ok=True)
    names = ("a",) if " ./" in line else ("a", "b c")
    text = "\n".join(line.format(name, name) for name in names)
    (voc.root / place).write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = voc_source(voc.root, "train")
    assert [i.image_id for i in source.images] == list(names)
    assert not any("suffix" in problem.reason for problem in source.problems)


def test_other_text_files_are_ignored(voc):
    voc.add("a", [("cat", 1, 1, 9, 9)])
    shutil.rmtree(voc.root / "ImageSets")
    (voc.root / "classes.txt").write_text("cat")
    (voc.root / "Annotations/readme.txt").write_text("cat")
    assert voc_source(voc.root, "anything").total == 1


def test_swapped_corners_are_exchanged(voc, convert_voc):
    voc.add("a", [("cat", 20, 20, 11, 5), ("cat", 20, 3, 11, 9)])
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(10, 4, 20, 20), (10, 2, 20, 9)]
    assert problems.splitlines() == [
        "a.xml: repaired: object 1: the corners of cat are swapped; exchanged",
        "a.xml: repaired: object 2: the corners of cat are swapped; exchanged",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1.0", True), ("true", True), ("TRUE", True), ("", False), ("0.0", False)],
)
def test_difficult_is_read_as_tools_write_it(voc, convert_voc, value, expected):
    voc.add("a", [("cat", 1, 1, 9, 9, value)])
    samples, problems = convert_voc()
    assert samples["a"].difficult == [expected] and problems == ""


def test_difficult_of_neither_value_is_reported(voc, convert_voc):
    voc.add("a", [("cat", 1, 1, 9, 9, "Unspecified")])
    samples, problems = convert_voc()
    assert samples["a"].difficult == [False]
    assert problems == (
        "a.xml: repaired: object 1: difficult is 'Unspecified', neither true nor false; read as "
        "false"
    )


def test_zero_based_corners_are_reported_once(voc, convert_voc):
    voc.add("a", [("cat", 0, 0, 9, 9), ("cat", 5, 0, 9, 9)])
    voc.add("b", [("cat", 0, 5, 39, 29), ("cat", 9, 0.25, 39.5, 29)])
    samples, problems = convert_voc()
    assert samples["a"].boxes == [(0, 0, 9, 9), (4, 0, 9, 9)]
    assert samples["b"].boxes == [(0, 4, 39, 29), (8, 0, 39.5, 29)]
    assert problems.startswith(
        "voc: suspicious: the corners look 0-based: 4 of 4 boxes begin before 1"
    )
    assert problems.count("\n") == 0 and "--corners-from 0" in problems


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (
            [(1, 5, 20, 20), (9, 1, 20, 20)],
            "but 2 of 3 begin at 1: these corners look like",
        ),
        (
            [(3, 5, 40, 20)],
            "and 1 of 2 end at the full width or height, where 0-based corners",
        ),
        ([(3, 5, 39, 29)], "look 0-based: 1 of 2 boxes begin before 1, the first pixel, and none"),
    ],
)
def test_zero_corners_are_weighed_against_the_other_boxes(voc, convert_voc, others, expected):
    voc.add("a", [("cat", 0, 5, 9, 9), *(("cat", *box) for box in others)])
    problems = convert_voc()[1]
    assert expected in problems and problems.count("suspicious") == 1
    assert ("--corners-from 0" in problems) == ("look 0-based" in expected)


@pytest.mark.parametrize("sizes", [True, False])
def test_sizes_in_the_place_of_corners_are_reported(voc, convert_voc, sizes):
    for i in range(6):  # half of them are swapped if the size is read as a corner
        x, y = 5 + 4 * i, 2 + i
        box = (x, y, 15, 8) if sizes else (x + 15, y + 15, x, y)
        voc.add(f"{i}", [("cat", *box)], size=(0, 0) if i == 3 else (40, 30))
    lines = [line for line in convert_voc()[1].splitlines() if "suspicious" in line]
    assert len(lines) == sizes
    if sizes:
        assert "the corners of 3 of 6 boxes are swapped, and nearly all boxes fit" in lines[0]
        assert "as the top left corner and the size (6 fit)" in lines[0]


def test_corners_may_be_zero_based(voc, tmp_path, convert_source):
    voc.add("a", [("cat", 0, 0, 39, 29), ("cat", 20, 9, 4, 4), ("cat", -1, 3, 9, 9)])
    convert_source(voc_source(voc.root, "train", corners_from=0), tmp_path / "out")
    boxes = Sample.from_json(ShardSet(tmp_path / "out").read(0).json).boxes
    assert boxes == [(0, 0, 40, 30), (4, 4, 21, 10), (0, 3, 10, 10)]
    assert [p.kind for p in read_problems(tmp_path / "out")] == ["repaired", "box clipped"]


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
