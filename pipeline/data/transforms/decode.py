"""Decode image bytes to RGB pixels, in one way for conversion, training and prediction.

Strict on purpose: a damaged JPEG that other decoders silently accept is an error here.
This module stands alone (no imports from this project), so a registered model can include it.

Shape letters: H, W image height and width.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

# Below the size from which Pillow itself warns of decompression bombs.
MAX_PIXELS = 89_000_000
# Without this list Pillow would also try rare formats, one of which starts a program (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
Image.init()  # registers all of these formats
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Depths of sensors in bits: values are scaled by the first one that holds the largest of a picture.
DEPTHS = (8, 10, 12, 14, 16, 24, 31)
# Values that differ by less than this share of their scale are stretched to the whole of it.
MIN_USED_SHARE = 1 / 16
MAX_FRACTION = 1.1  # resizing leads a little above 1
# How files begin that are often named like pictures, at an offset, and what they are.
SIGNATURES = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftypcrx", "a camera's raw format"),
    (0, b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
)


class ImageError(ValueError):
    """Bytes that cannot be used as an image; the message says why."""


def image_format(data: bytes | memoryview) -> str | None:
    """Return the extension that fits the content, ``jpg`` or ``png``; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    return "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else None


class Decoded(NamedTuple):
    """Pixels (H,W,3), uint8 RGB; ``notes`` say what was done that a user may not expect."""

    pixels: np.ndarray
    notes: list[str]


def decode_image(
    data: bytes | memoryview, *, upright: bool = True, min_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the pixels (H,W,3), uint8 RGB, of a JPEG, PNG, BMP, WebP, GIF, TIFF or PPM.

    Grey, CMYK, palette and transparent (on white) images become RGB. More than 8 bits are scaled by
    the depth of the sensor that holds the largest value: 8, 10, 12, 14 or 16 bits, fractions by 1.
    If the values differ by less than 1/16 of that, or are negative, their range is stretched to
    0..255. Of an image without any opaque pixel the alpha is scaled up, or ignored if it is 0
    throughout. ``upright`` applies the EXIF orientation. ``min_size`` (width, height) allows a JPEG
    to be decoded at a scale of k/8, at most 1/2, as long as the result is not smaller. Raises
    ImageError.
    """
    return decode_with_notes(data, upright=upright, min_size=min_size).pixels


def decode_with_notes(
    data: bytes | memoryview, *, upright: bool = True, min_size: tuple[int, int] | None = None
) -> Decoded:
    """Return the pixels as `decode_image` does, and notes on how they were read."""
    pixels = _decode_jpeg(data, min_size) if image_format(data) == "jpg" else None
    notes: list[str] = []
    if pixels is None:
        pixels, notes = _decode_other(data)
    return Decoded(turn_upright(pixels, orientation(data)) if upright else pixels, notes)


def orientation(data: bytes | memoryview) -> int:
    """Return the EXIF orientation 1..8 of JPEG, PNG, WebP or TIFF bytes; 1 (as stored) if none."""
    if not may_have_orientation(data):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raises nearly anything; the pixels may still be valid
        return 1
    return value if value in range(1, 9) else 1


def may_have_orientation(data: bytes | memoryview) -> bool:
    """Return whether the bytes have EXIF metadata, which most images of a data set have not."""
    if image_format(data) == "jpg":
        return b"Exif\x00\x00" in bytes(data[:65536])
    if image_format(data) == "png":
        return b"eXIf" in bytes(data)  # it may follow the pixels
    if data[:4] == b"RIFF":
        return b"EXIF" in bytes(data)
    return bytes(data[:4]) in TIFF_SIGNATURES


def turn_upright(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Rotate and mirror pixels (H,W,3) by their EXIF orientation; (W,H,3) for 5 to 8."""
    if exif_orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)  # (W,H,3)
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes | memoryview, min_size: tuple[int, int] | None) -> np.ndarray | None:
    """Return the pixels (H,W,3) of a JPEG, or None for colour spaces that only Pillow converts."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if colorspace not in ("RGB", "YCbCr", "Gray"):
            simplejpeg.decode_jpeg(data, "CMYK")  # only as a check: stricter than Pillow
            return None
        min_width, min_height = min_size or (0, 0)
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=min_height, min_width=min_width, min_factor=2
        )
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"damaged JPEG: {error}") from None


def _decode_other(data: bytes | memoryview) -> Decoded:
    """Return the pixels (H,W,3), as stored, of any other format."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            frames = getattr(image, "n_frames", 1)
            decoded = _to_rgb(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(_describe_unreadable(bytes(data[:64]))) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise ImageError(f"damaged image: {error or type(error).__name__}") from None
    if frames > 1:
        decoded.notes.append(f"the first of {frames} frames is used")
    if bytes(data[:4]) in TIFF_SIGNATURES:  # Pillow has turned it upright
        turn = orientation(data)
        return Decoded(turn_upright(decoded.pixels, {6: 8, 8: 6}.get(turn, turn)), decoded.notes)
    return decoded


def _describe_unreadable(start: bytes) -> str:
    """Return what the first bytes of a file that is not an image of a known format show."""
    for offset, signature, name in SIGNATURES:
        if start.startswith(signature, offset):
            return f"{name}, a format that is not read; convert it to JPEG or PNG"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "not an image but a pointer of Git LFS; fetch the files with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "not an image but a web page"
    return "not an image" if start else "empty file"


def _to_rgb(image: Image.Image) -> Decoded:
    if image.mode.startswith(("I", "F")):  # convert() would clip instead of scaling
        grey, notes = _scale_to_bytes(np.asarray(image))
        return Decoded(np.repeat(grey[:, :, None], 3, axis=2), notes)
    if not image.has_transparency_data:
        return Decoded(np.array(image.convert("RGB")), [])
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    opacity = int(np.asarray(alpha).max())
    if opacity == 0:
        return Decoded(np.array(image.convert("RGB")), ["transparent throughout; alpha ignored"])
    notes = []
    if opacity < 255:
        notes.append(f"no pixel is opaque; alpha of 0 to {opacity} scaled to 0 to 255")
        image.putalpha(alpha.point([min(a * 255 // opacity, 255) for a in range(256)]))
    white = Image.new("RGBA", image.size, "white")
    return Decoded(np.array(Image.alpha_composite(white, image).convert("RGB")), notes)


def _scale_to_bytes(values: np.ndarray) -> Decoded:
    """Return values (H,W) of any type as uint8 (H,W), scaled as `decode_image` says."""
    fractional = values.dtype.kind == "f"
    if fractional and not (finite := np.isfinite(values)).all():
        values = np.where(finite, values, values[finite].min() if finite.any() else 0)
    low, high = values.min().item(), values.max().item()
    bits = next((bits for bits in DEPTHS if high < 2**bits), DEPTHS[-1])
    unit = fractional and high <= MAX_FRACTION
    if low < high and (low < 0 or high - low < MIN_USED_SHARE * (1 if unit else 2**bits)):
        pixels = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
        return Decoded(pixels.astype(np.uint8), [f"values of {low:g} to {high:g} stretched"])
    if unit:
        pixels = np.rint(values * 255).clip(0, 255)
        return Decoded(pixels.astype(np.uint8), ["values of 0 to 1 scaled to 0 to 255"])
    if fractional:
        values = values.clip(0, 2**31 - 1).astype(np.int64)
    pixels = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    expected = bits == (8 if fractional else 16)
    return Decoded(pixels, [] if expected else [f"values of up to {high:g} read as {bits} bits"])


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS}")
