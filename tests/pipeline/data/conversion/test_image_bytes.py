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
    got = prepare_image(data, f"x.{extension}", (40, 30))
    assert got[:5] == (data, extension, 40, 30, [])


@pytest.mark.parametrize("name", ["x.jpeg", "x.JPG", "x.jfif"])
def test_all_jpeg_suffixes_are_accepted(encode, name):
    assert prepare_image(encode(), name, None).notes == ()


def test_png_named_jpg_with_size_zero_is_repaired(encode):
    data = encode("PNG")
    got = prepare_image(data, "x.jpg", (0, 0))
    assert got[:4] == (data, "png", 40, 30)
    assert got.notes == ("content is PNG; stored as .png",)
    assert got.repairs == ["annotated size is 0x0, the image is 40x30"]


def test_other_formats_become_png_with_the_same_pixels(encode):
    got = prepare_image(encode("BMP"), "x.bmp", (40, 30))
    assert got.extension == "png" and got.notes == ("not JPEG or PNG; stored as PNG",)
    assert np.array_equal(decode_image(got.data), decode_image(encode("BMP")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("size", [(40, 30), None, (0, 0)])
def test_exif_orientation_is_removed_without_rotation(encode, kind, turn, size):
    data = rotated(encode, kind, turn)
    got = prepare_image(data, f"x.{kind.lower()}", size)
    assert (got.width, got.height) == (40, 30) and orientation(got.data) == 1
    assert np.array_equal(decode_image(got.data), decode_image(data, upright=False))
    assert "EXIF orientation removed" in got.repairs[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_annotated_size_of_the_upright_image_rotates_it(encode, kind):
    data = rotated(encode, kind, 6)
    got = prepare_image(data, f"x.{kind.lower()}", (30, 40))
    assert (got.width, got.height) == (30, 40) and orientation(got.data) == 1
    assert abs(decode_image(got.data).astype(int) - decode_image(data)).max() <= 8
    assert got.repairs == ["rotated upright to match the annotated size"]


def test_removal_of_exif_keeps_other_metadata(encode):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(exif=exif, comment=b"kept")
    got = prepare_image(data, "x.jpg", None)
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
    got = prepare_image(data, "x.png", None, upright=True)
    assert np.array_equal(decode_image(got.data, upright=False), decode_image(data))
    assert got.repairs == ["rotated upright to match the label format"]
