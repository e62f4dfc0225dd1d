"""Decode image bytes to RGB pixels, in one way for conversion, training and prediction.

Strict on purpose: a damaged JPEG that other decoders silently accept is an error here.
This module stands alone (no imports from this project), so a registered model can include it.

Shape letters: H, W image height and width.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

# Below the size from which Pillow itself warns of decompression bombs.
MAX_PIXELS = 89_000_000
# Without this list Pillow would also try rare formats, one of which starts a program (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
Image.init()  # registers all of these formats


class ImageError(ValueError):
    """Bytes that cannot be used as an image; the message says why."""


def image_format(data: bytes | memoryview) -> str | None:
    """Return the extension that fits the content, ``jpg`` or ``png``; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    return "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else None


def decode_image(
    data: bytes | memoryview, *, upright: bool = True, min_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the pixels (H,W,3), uint8 RGB, of a JPEG, PNG, BMP, WebP, GIF, TIFF or PPM.

    Grey, CMYK, palette, 16-bit and transparent (on white) images become RGB. ``upright`` applies
    the EXIF orientation. ``min_size`` (width, height) allows a JPEG to be decoded at a scale of
    k/8, at most 1/2, as long as the result is not smaller. Raises ImageError.
    """
    pixels = _decode_jpeg(data, min_size) if image_format(data) == "jpg" else None
    if pixels is None:
        pixels = _decode_other(data)
    return turn_upright(pixels, orientation(data)) if upright else pixels


def orientation(data: bytes | memoryview) -> int:
    """Return the EXIF orientation 1..8 of JPEG, PNG or WebP bytes; 1 (as stored) without one."""
    # Search for the marker first: most images of a data set have no EXIF.
    if image_format(data) == "jpg":
        marked = b"Exif\x00\x00" in bytes(data[:65536])
    elif image_format(data) == "png":
        marked = b"eXIf" in bytes(data)  # it may follow the pixels
    else:  # Pillow applies the orientation of a TIFF itself
        marked = data[:4] == b"RIFF" and b"EXIF" in bytes(data)
    if not marked:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raises nearly anything; the pixels may still be valid
        return 1
    return value if value in range(1, 9) else 1


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


def _decode_other(data: bytes | memoryview) -> np.ndarray:
    """Return the pixels (H,W,3) of any other format."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            return np.array(_to_rgb(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("not an image" if data else "empty file") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise ImageError(f"damaged image: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel; convert() would clip instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS}")
