"""Test that every image format decodes to the same RGB pixels, and damage is an error."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.transforms import decode
from pipeline.data.transforms.decode import (
    ImageError,
    decode_image,
    decode_with_notes,
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


GREY = np.linspace(16, 175, 48 * 32).reshape(32, 48)


@pytest.mark.parametrize(
    ("values", "kind", "note"),
    [
        (GREY.astype(np.uint16), "PNG", "values of up to 175 read as 8 bits"),
        ((GREY * 4).astype(np.uint16), "PNG", "values of up to 700 read as 10 bits"),
        ((GREY * 16).astype(np.uint16), "TIFF", "values of up to 2800 read as 12 bits"),
        ((GREY * 64).astype(np.uint16), "TIFF", "values of up to 11200 read as 14 bits"),
        ((GREY * 256).astype(np.uint16), "PNG", None),
        (GREY.astype(np.int32), "TIFF", "values of up to 175 read as 8 bits"),
        ((GREY * 256).astype(np.int32), "TIFF", None),
        ((GREY * 2**23).astype(np.int32), "TIFF", "values of up to 1.46801e+09 read as 31 bits"),
        ((GREY / 255).astype(np.float32), "TIFF", "values of 0 to 1 scaled to 0 to 255"),
        (GREY.astype(np.float32), "TIFF", None),
        ((GREY * 256).astype(np.float32), "TIFF", "values of up to 44800 read as 16 bits"),
    ],
)
def test_values_are_scaled_by_the_depth_that_holds_them(values, kind, note):
    decoded = decode_with_notes(save(Image.fromarray(values), kind))
    assert decoded.pixels.shape == (32, 48, 3) and decoded.notes == ([note] if note else [])
    assert abs(decoded.pixels[:, :, 1] - GREY).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        (GREY + 29_000).astype(np.uint16),  # a thermal camera
        (GREY - 1000).astype(np.int32),  # a CT scanner
        (GREY / 127.5 - 1).astype(np.float32),
        (GREY / 10 + 280).astype(np.float32),
    ],
)
def test_values_in_a_small_part_of_their_scale_are_stretched(values):
    decoded = decode_with_notes(save(Image.fromarray(values), "TIFF"))
    assert [note.split(" of ")[0] for note in decoded.notes] == ["values"]
    assert decoded.notes[0].endswith("stretched")
    assert abs(decoded.pixels[:, :, 0] - (GREY - 16) / 159 * 255).max() <= 3


def test_fractions_may_be_a_little_above_one():
    values = np.array([[0, 0.5, 1, 1.04]], np.float32)
    decoded = decode_with_notes(save(Image.fromarray(values), "TIFF"))
    assert decoded.pixels[0, :, 0].tolist() == [0, 128, 255, 255]


def test_values_that_are_not_finite_do_not_hide_the_others():
    values = (GREY / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decode_image(save(Image.fromarray(values), "TIFF"))[:, :, 0]
    assert pixels[0, :3].tolist() == [16, 16, 16]
    assert abs(pixels[1:] - GREY[1:]).max() <= 1


@pytest.mark.parametrize("value", [0, 500, 40_000])
def test_one_grey_level_stays_one(value):
    grey = np.full((4, 4), value, np.uint16)
    assert np.ptp(decode_image(save(Image.fromarray(grey), "PNG"))) == 0


@pytest.mark.parametrize(("opacity", "note"), [(0, "alpha ignored"), (128, "of 0 to 128 scaled")])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_without_opaque_pixels_does_not_hide_the_image(colours, mode, opacity, note):
    image = colours.convert(mode)
    image.putalpha(opacity)
    decoded = decode_with_notes(save(image, "PNG"))
    expected = np.asarray(colours.convert(mode[:-1]).convert("RGB"))
    assert np.array_equal(decoded.pixels, expected) and note in decoded.notes[0]


def test_further_frames_are_noted(colours):
    data = save(colours, "TIFF", save_all=True, append_images=[colours])
    assert decode_with_notes(data).notes == ["the first of 2 frames is used"]


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert decode_image(save(image, "PNG"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
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
        (b"<html>404 not found</html>", "not an image but a web page"),
        (b"\xff\xd8\xff\xe0 and then nothing of a JPEG", "damaged JPEG"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
            "PostScript, a format that is not",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, a format that is not read; convert it"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF, a format that is not read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000, a format that is not read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"some text", "^not an image$"),
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
