"""Test that the frame of boxes is decided once per source, by its sideways images."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data.conversion.frames.orientation import collect_evidence, settle_frame
from pipeline.data.shards.manifest import read_problems
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.sample import Sample
from pipeline.data.sources.coco import coco_source
from pipeline.data.sources.record import Object, ParsedImage, Record, Source
from pipeline.data.sources.voc import voc_source
from pipeline.data.sources.yolo import yolo_source
from pipeline.data.transforms.decode import decode_image

WIDTH, HEIGHT = 48, 32  # as stored
BOX = (4, 6, 20, 26)  # of the red patch, in the frame of the boxes


def turned(turn: int, kind: str = "PNG", patch: tuple[int, ...] = BOX, upright: bool = True):
    """Return bytes of an image with that orientation; the patch is in the upright image or not."""
    across, down = (HEIGHT, WIDTH) if upright and turn >= 5 else (WIDTH, HEIGHT)
    pixels = np.zeros((down, across, 3), np.uint8)
    pixels[..., 2] = np.linspace(0, 255, across)
    x1, y1, x2, y2 = patch
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    if upright:
        pixels = _undo(pixels, turn)
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
    )
    return out.getvalue()


def _undo(pixels, turn):
    """Return the pixels that an orientation turns into these."""
    undo = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(undo[turn])


def source(images: list[tuple[bytes, tuple[int, int] | None, tuple[int, ...]]], **other) -> Source:
    """Return a source of (bytes, annotated size, box)."""
    rows = [
        ParsedImage(
            Record(str(n), f"{n}.png", data, "a", size, [Object("cat", tuple(map(float, box)))])
        )
        for n, (data, size, box) in enumerate(images)
    ]
    return Source("coco", "phone", ["cat"], rows, len(rows), **other)


def frames(settled: Source) -> set[tuple[bool, bool | None]]:
    return {(r.upright, r.size_upright) for r in (i.read_record() for i in settled.images)}


def convert(settled: Source, convert_source, out):
    """Return samples and problems, without near duplicates."""
    convert_source(settled, out)
    shards = ShardSet(out)
    rows = [shards.read(i) for i in range(len(shards))]
    problems = [p for p in read_problems(out) if p.kind != "near duplicate"]
    return [(decode_image(r.image), Sample.from_json(r.json)) for r in rows], problems


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_sizes_decide_for_all_eight_orientations(convert_source, tmp_path, upright, kind):
    sizes = {n: (HEIGHT, WIDTH) if upright and n >= 5 else (WIDTH, HEIGHT) for n in range(1, 9)}
    images = [(turned(n, kind, upright=upright), sizes[n], BOX) for n in range(1, 9)]
    samples, problems = convert(source(images), convert_source, tmp_path / "out")
    assert len(samples) == 8
    for pixels, sample in samples:
        x1, y1, x2, y2 = map(int, sample.boxes[0])
        assert (sample.height, sample.width) == pixels.shape[:2]
        red = pixels.astype(int)
        assert red[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1, 0].min() > 200  # JPEG blurs the border
        assert red[:, x2 + 1 :, 0].max() < 60 and red[y2 + 1 :, :, 0].max() < 60
    frame, other = ("upright images", "stored") if upright else ("pixels as stored", "upright")
    assert (
        f"7 images have an EXIF orientation, 4 of them sideways; boxes are read as those of "
        f"the {frame} (the annotated sizes of 4 " in problems[0].reason
    )
    assert f"--boxes-are {other}" in problems[0].reason and problems[0].file == "phone"
    assert problems[0].kind == ("note" if upright else "suspicious")
    assert {p.kind for p in problems[1:]} == {"note"}


@pytest.mark.parametrize(("box", "upright"), [((2, 2, 46, 9), False), ((2, 2, 9, 46), True)])
@pytest.mark.parametrize("size", [None, (0, 0), (WIDTH, HEIGHT)])
def test_boxes_that_fit_one_way_only_outweigh_sizes(box, upright, size):
    images = [(turned(6), size, box), (turned(8), size, BOX), (turned(3), size, BOX)]
    settled = settle_frame(source(images))
    assert "boxes of 1 sideways images fit only these" in settled.problems[0].reason
    assert settled.problems[0].kind == "note"
    expected = (
        (upright, False if size == (WIDTH, HEIGHT) else upright) if upright else (False, None)
    )
    assert frames(settled) == {expected}


def test_sizes_of_the_stored_image_do_not_skip_upright_boxes(convert_source, tmp_path):
    # Label Studio: the size is that of the stored image, the boxes are of the upright one.
    box = (2, 2, 9, 46)
    images = [(turned(6, patch=box), (WIDTH, HEIGHT), box)]
    [(pixels, sample)], _ = convert(source(images), convert_source, tmp_path / "out")
    assert (sample.width, sample.height) == (HEIGHT, WIDTH) and sample.boxes == [box]
    assert pixels[2:46, 2:9, 0].min() == 255


def test_few_boxes_do_not_outweigh_many_sizes():
    images = [(turned(6), (HEIGHT, WIDTH), BOX)] * 30 + [(turned(6), None, (2, 2, 46, 9))]
    assert frames(settle_frame(source(images))) == {(True, True)}


def test_sizes_are_compared_by_shape():
    images = [(turned(6), (2 * HEIGHT, 2 * WIDTH), (2, 2, 2 * HEIGHT, 2 * WIDTH))]
    assert frames(settle_frame(source(images))) == {(True, True)}


@pytest.mark.parametrize("turns", [(3,), (2, 4), (6,), (6, 8)])
def test_without_evidence_boxes_are_of_the_stored_pixels(turns):
    settled = settle_frame(source([(turned(turn), None, BOX) for turn in turns]))
    assert frames(settled) == {(False, None)}
    assert settled.problems[0].kind == "suspicious"
    assert "pixels as stored (without evidence); --boxes-are upright" in settled.problems[0].reason


def test_contradicting_image_is_skipped_and_named(convert_source, tmp_path):
    images = [(turned(6), (HEIGHT, WIDTH), BOX)] * 2 + [(turned(8), (WIDTH, HEIGHT), BOX)]
    samples, problems = convert(source(images), convert_source, tmp_path / "out")
    assert len(samples) == 2 and problems[0].kind == "suspicious"
    assert "(the annotated sizes of 2 sideways images are theirs; 1 contradict)" in str(problems[0])
    assert [str(p) for p in problems if p.kind == "image skipped"] == [
        "2.png: image skipped: annotated size is 48x32, the image is 32x48; correct the size, or "
        "delete it if the boxes fit the image"
    ]


def test_images_without_orientation_need_no_decision():
    plain = source([(turned(1), (WIDTH, HEIGHT), BOX), (b"no image", None, BOX)])
    assert settle_frame(plain) is plain and plain.problems == []


def test_other_splits_decide_where_a_split_shows_nothing(voc):
    box = ("cat", 3, 3, 9, 9)
    voc.add("a", [box], image=turned(6), suffix=".png", size=(HEIGHT, WIDTH), split="train")
    voc.add("b", [box], image=turned(3), suffix=".png", size=(WIDTH, HEIGHT), split="val")
    voc.add("c", [box], image=turned(1), suffix=".png", size=(WIDTH, HEIGHT), split="test")
    assert frames(settle_frame(voc_source(voc.root, "val"))) == {(True, True)}
    assert settle_frame(voc_source(voc.root, "test")).problems == []  # needs no decision


@pytest.mark.parametrize("given", ["stored", "upright"])
def test_given_frame_is_not_questioned(convert_source, tmp_path, given):
    upright = given == "upright"
    # The sizes show the opposite, and still do not skip the image.
    size = (WIDTH, HEIGHT) if upright else (HEIGHT, WIDTH)
    settled = settle_frame(source([(turned(6, upright=upright), size, BOX)]), given)
    assert settled.problems == [] and frames(settled) == {(upright, not upright)}


def test_frame_is_part_of_the_identity_of_an_image():
    # A finished shard of an interrupted conversion is reused if its images have the same repr.
    image = [(turned(6), (HEIGHT, WIDTH), BOX)]
    stored, upright = (settle_frame(source(image), frame) for frame in ("stored", "upright"))
    assert repr(list(stored.images)) != repr(list(upright.images))


def test_orientation_is_decided_for_each_format(voc, coco, tmp_path):
    voc.add("a", [("cat", 3, 3, 9, 46)], image=turned(6), suffix=".png", size=(HEIGHT, WIDTH))
    assert frames(settle_frame(voc_source(voc.root, "train"))) == {(True, True)}
    rows = [{"id": 7, "file_name": "one.jpg", "width": HEIGHT, "height": WIDTH}]
    images, file = coco([{"bbox": [1, 1, 9, 9]}], images=rows)
    (images / "one.jpg").write_bytes(turned(6, "JPEG"))
    assert frames(settle_frame(coco_source(images, file))) == {(True, True)}
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo/a.png").write_bytes(turned(6))
    (tmp_path / "yolo/a.txt").write_text("0 .5 .5 .1 .1")
    yolo = yolo_source(tmp_path / "yolo", None, ["cat"])
    assert settle_frame(yolo) is yolo and frames(yolo) == {(True, None)}
    assert frames(settle_frame(yolo, "stored")) == {(False, False)}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("archive", ["tar", "zip", None])
def test_headers_are_read_in_archives(voc, tmp_path, archive, kind):
    # Larger than the part that is read first, and incompressible.
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind, exif=exif)
    voc.add("a", [("cat", 1, 1, 9, 9)], image=out.getvalue(), size=(200, 300))
    root = voc.root
    if archive == "tar":
        root = tmp_path / "s.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(voc.root, "s")
    elif archive == "zip":
        root = tmp_path / "s.zip"
        with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as file:
            for path in voc.root.rglob("*.*"):
                file.write(path, path.relative_to(tmp_path))
    evidence = collect_evidence(voc_source(root, None))
    assert (evidence.oriented, evidence.sideways) == (1, 1)
    assert evidence.by_size == {"upright": 1}
