"""Test that every image format decodes to the same RGB pixels, and damage is an error."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.transforms import decode
from pipeline.data.transforms.decode import (
    ImageError,
    decode_image,
    image_format,
    orientation,
    turn_upright,
)


def save(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def colours() -> Image.Image:
    x, y = np.meshgrid(np.arange(48), np.arange(32))
    return Image.fromarray(np.stack([x * 5, y * 7, x + y], 2).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_exact_pixels(colours, kind):
    assert np.array_equal(decode_image(save(colours, kind)), np.asarray(colours))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_the_pixels_of_pillow(colours, options):
    data = save(colours, "JPEG", quality=95, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert abs(decode_image(data).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg_become_rgb(colours, mode):
    data = save(colours.convert(mode), "JPEG", quality=95)
    got = decode_image(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert got.shape == (32, 48, 3) and abs(got.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_other_png_modes_become_rgb(colours, mode):
    image = colours.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(save(image, "PNG")), expected)


def test_sixteen_bit_png_is_scaled_not_clipped():
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert decode_image(save(Image.fromarray(grey), "PNG"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert decode_image(save(image, "PNG"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_by_default(colours, turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = save(colours, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    stored = decode_image(data, upright=False)
    upright = np.asarray(ImageOps.exif_transpose(Image.fromarray(stored)))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert orientation(data) == orientation(memoryview(data)) == turn
    assert stored.shape == upright.shape == (32, 48, 3)
    assert abs(decode_image(data).astype(int) - expected).max() <= 3
    assert np.array_equal(decode_image(data), turn_upright(stored, turn))


def test_much_larger_jpeg_is_decoded_at_a_fraction(colours):
    data = save(colours.resize((641, 480)), "JPEG")
    assert decode_image(data, min_size=(320, 200)).shape == (240, 321, 3)
    assert decode_image(data, min_size=(400, 100)).shape == (480, 641, 3)


def test_formats_are_detected_from_their_bytes(colours):
    names = [image_format(save(colours, kind)) for kind in ("JPEG", "PNG", "BMP")]
    assert names == ["jpg", "png", None]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not an image"),
        (b"\xff\xd8\xff\xe0 and then nothing of a JPEG", "damaged JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_data_that_is_not_an_image_is_an_error(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_image_is_an_error(colours, kind, share):
    data = save(colours.resize((200, 150)), kind)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_with_foreign_bytes_that_pillow_accepts_is_an_error(colours, mode):
    data = bytearray(save(colours.resize((400, 300)).convert(mode), "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd0" * 20  # misplaced restart markers
    Image.open(io.BytesIO(data)).load()  # Pillow accepts it
    with pytest.raises(ImageError, match="damaged JPEG"):
        decode_image(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_more_pixels_than_the_limit_are_rejected_before_decoding(colours, monkeypatch, kind):
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(ImageError, match="48x32 pixels exceed the limit of 1535"):
        decode_image(save(colours, kind))
