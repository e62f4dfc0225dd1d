"""Stored images: the original bytes if they are valid, in the orientation of the boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.conversion.image_bytes import prepare_image, read_image
from pipeline.data.sources.files import LooseFile
from pipeline.data.transforms.decode import ImageError, decode_image, orientation
from pipeline.errors import UserError


def rotated(encode, kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encode(kind, exif=exif)


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png")])
def test_valid_bytes_are_kept(encode, kind, extension):
    data = encode(kind)
    got = prepare_image(data, f"x.{extension}")
    assert got[:5] == (data, extension, 40, 30, []) and not got.sideways and not got.flat


@pytest.mark.parametrize("name", ["x.jpeg", "x.JPG", "x.jfif"])
def test_all_jpeg_suffixes_are_accepted(encode, name):
    assert prepare_image(encode(), name).notes == []


def test_png_named_jpg_is_noted(encode):
    data = encode("PNG")
    got = prepare_image(data, "x.jpg")
    assert got[:5] == (data, "png", 40, 30, ["content is PNG; stored as .png"])


def test_other_formats_become_png_with_the_same_pixels(encode):
    got = prepare_image(encode("BMP"), "x.bmp")
    assert got.extension == "png" and got.notes == ["not JPEG or PNG; stored as PNG"]
    assert np.array_equal(decode_image(got.data), decode_image(encode("BMP")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_orientation_is_removed_without_rotation(encode, kind, turn):
    data = rotated(encode, kind, turn)
    got = prepare_image(data, f"x.{kind.lower()}")
    assert (got.width, got.height) == (40, 30) and orientation(got.data) == 1
    assert np.array_equal(decode_image(got.data), decode_image(data, upright=False))
    assert got.notes[0] == f"EXIF orientation {turn} removed; pixels are as stored"
    assert got.sideways == (turn >= 5)


@pytest.mark.parametrize("low_and_high", [(0, 0), (100, 115), (0, 16)])
def test_images_of_almost_one_colour_are_flat(low_and_high):
    low, high = low_and_high
    pixels = np.full((40, 50, 3), (low, 200, 90), np.uint8)
    pixels[7, 9, 0] = high
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    assert prepare_image(out.getvalue(), "x.png").flat == (high - low < 16)


def test_removal_of_exif_keeps_other_metadata(encode):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(exif=exif, comment=b"kept")
    got = prepare_image(data, "x.jpg")
    assert b"kept" in got.data and b"Exif" not in got.data
    assert Image.open(io.BytesIO(got.data)).info["comment"] == b"kept"


def test_missing_and_oversized_files_raise(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.jpg: deleted .*, or not visible to all nodes"):
        read_image(LooseFile(str(tmp_path / "none.jpg"), 1, 0))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(LooseFile(str(tmp_path), 1, 0))
    (tmp_path / "big.jpg").write_bytes(bytes(11))
    monkeypatch.setattr("pipeline.data.conversion.image_bytes.MAX_IMAGE_BYTES", 10)
    with pytest.raises(ImageError, match="larger than the limit"):
        read_image(LooseFile.of(tmp_path / "big.jpg"))


@pytest.mark.parametrize("turn", range(2, 9))
def test_upright_labels_rotate_the_image(encode, turn):
    data = rotated(encode, "PNG", turn)
    got = prepare_image(data, "x.png", upright=True)
    assert np.array_equal(decode_image(got.data, upright=False), decode_image(data))
    assert got.notes == [f"turned upright by its EXIF orientation {turn}"]
