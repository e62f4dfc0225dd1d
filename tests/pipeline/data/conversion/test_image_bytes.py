"""What is stored: the original bytes where they are sound, and pixels that the boxes mean."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.conversion.image_bytes import read_image, stored_image
from pipeline.data.sources.files import LooseFile
from pipeline.data.transforms.decode import ImageError, decode_image, orientation
from pipeline.errors import UserError


def rotated(encode, kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encode(kind, exif=exif)


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png")])
def test_sound_bytes_are_kept(encode, kind, extension):
    data = encode(kind)
    got = stored_image(data, f"x.{extension}", (40, 30))
    assert got[:5] == (data, extension, 40, 30, [])


@pytest.mark.parametrize("name", ["x.jpeg", "x.JPG", "x.jfif"])
def test_all_names_of_jpeg_are_right(encode, name):
    assert stored_image(encode(), name, None).notes == []


def test_png_bytes_under_a_jpg_name_with_size_zero(encode):
    data = encode("PNG")
    got = stored_image(data, "x.jpg", (0, 0))
    assert got[:4] == (data, "png", 40, 30)
    assert got.notes == [
        "PNG bytes under another name; stored as .png",
        "annotated size 0x0; the picture's is 40x30",
    ]


def test_other_formats_become_png_with_the_same_pixels(encode):
    got = stored_image(encode("BMP"), "x.bmp", (40, 30))
    assert got.extension == "png" and got.notes == ["not JPEG or PNG; stored as PNG"]
    assert np.array_equal(decode_image(got.data), decode_image(encode("BMP")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("size", [(40, 30), None, (0, 0)])
def test_boxes_mean_the_pixels_as_stored(encode, kind, turn, size):
    data = rotated(encode, kind, turn)
    got = stored_image(data, f"x.{kind.lower()}", size)
    assert (got.width, got.height) == (40, 30) and orientation(got.data) == 1
    assert np.array_equal(decode_image(got.data), decode_image(data, upright=False))
    assert "EXIF orientation removed" in got.notes[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_unless_the_annotated_size_is_the_upright_one(encode, kind):
    data = rotated(encode, kind, 6)
    got = stored_image(data, f"x.{kind.lower()}", (30, 40))
    assert (got.width, got.height) == (30, 40) and orientation(got.data) == 1
    assert abs(decode_image(got.data).astype(int) - decode_image(data)).max() <= 8
    assert got.notes == ["turned upright, as the annotated size asks"]


def test_other_metadata_survives_the_removal_of_exif(encode):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(exif=exif, comment=b"kept")
    got = stored_image(data, "x.jpg", None)
    assert b"kept" in got.data and b"Exif" not in got.data
    assert Image.open(io.BytesIO(got.data)).info["comment"] == b"kept"


def test_missing_and_oversized_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.jpg: gone, or not seen by all nodes"):
        read_image(LooseFile(str(tmp_path / "none.jpg"), 1, 0))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(LooseFile(str(tmp_path), 1, 0))
    (tmp_path / "big.jpg").write_bytes(bytes(11))
    monkeypatch.setattr("pipeline.data.conversion.image_bytes.MAX_BYTES", 10)
    with pytest.raises(ImageError, match="larger than the limit"):
        read_image(LooseFile.of(tmp_path / "big.jpg"))


@pytest.mark.parametrize("turn", range(2, 9))
def test_labels_of_the_upright_picture_turn_it(encode, turn):
    data = rotated(encode, "PNG", turn)
    got = stored_image(data, "x.png", None, upright=True)
    assert np.array_equal(decode_image(got.data, upright=False), decode_image(data))
    assert got.notes == ["turned upright, as the format of the labels asks"]
