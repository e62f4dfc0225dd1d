"""Prepare image bytes for storage: the original ones if they are valid JPEG or PNG."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.data.conversion.near_duplicates import image_hash
from pipeline.data.sources.files import File, LooseFile
from pipeline.data.transforms.decode import (
    MAX_PIXELS,
    ImageError,
    decode_with_notes,
    image_format,
    orientation,
    turn_upright,
)
from pipeline.errors import UserError

# No real image takes more than four bytes a pixel at the pixel limit.
MAX_IMAGE_BYTES = 4 * MAX_PIXELS
# Values of 0 to 255 that differ by less are one level to the eye: the file may hold another depth.
FLAT_RANGE, FLAT_SAMPLE_STEP = 16, 16


class StoredImage(NamedTuple):
    """Bytes to store, their extension and size; ``notes`` say how they differ from the original.

    ``sideways`` images had an EXIF orientation that exchanges width and height. The pixels of a
    ``flat`` image are almost of one colour. Near duplicates are found by ``image_hash``.
    """

    data: bytes
    extension: str
    width: int
    height: int
    notes: list[str]
    sideways: bool
    flat: bool
    image_hash: bytes


def read_image(image: File | bytes) -> bytes:
    """Return the bytes of an image file. Raises ImageError, or UserError if the file is missing."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read(MAX_IMAGE_BYTES)
    except FileNotFoundError as error:
        # The file existed when the source was listed, so this is not a fault of the data.
        where = image.path if isinstance(image, LooseFile) else error.filename
        raise UserError(
            f"{where}: deleted during the conversion, or not visible to all nodes; keep the source "
            "in place, on storage that all nodes share, until the conversion ends"
        ) from None
    except OSError as error:
        raise ImageError(f"image file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ImageError(str(error)) from None


def prepare_image(data: bytes, file_name: str, *, upright: bool = False) -> StoredImage:
    """Decode bytes completely and decide how to store them. Raises ImageError.

    Boxes refer to the pixels as stored or, with ``upright``, to the image as its EXIF orientation
    turns it. The stored image has no EXIF orientation: every reader sees the pixels that the boxes
    refer to.
    """
    pixels, notes = decode_with_notes(data, upright=False)
    extension, exif_orientation = image_format(data), orientation(data)
    if upright and exif_orientation != 1:
        pixels = turn_upright(pixels, exif_orientation)
        data = encode_image(pixels, extension)
        notes.append(f"turned upright by its EXIF orientation {exif_orientation}")
    elif exif_orientation != 1:
        data = _remove_exif(data) if extension == "jpg" else encode_image(pixels, extension)
        notes.append(f"EXIF orientation {exif_orientation} removed; pixels are as stored")
    elif extension is None:
        data = encode_image(pixels, None)
        notes.append("not JPEG or PNG; stored as PNG")
    if extension and not _has_suffix_of(file_name, extension):
        notes.append(f"content is {extension.upper()}; stored as .{extension}")
    return StoredImage(
        data,
        extension or "png",
        width=pixels.shape[1],
        height=pixels.shape[0],
        notes=notes,
        sideways=exif_orientation >= 5,
        flat=_is_flat(pixels),
        image_hash=image_hash(pixels),
    )


def _is_flat(pixels: np.ndarray) -> bool:
    """Return whether the values of each colour differ by less than 16 of 255."""
    few = pixels[::FLAT_SAMPLE_STEP, ::FLAT_SAMPLE_STEP]  # enough for nearly all images
    return all(np.ptp(part, axis=(0, 1)).max() < FLAT_RANGE for part in (few, pixels))


def _has_suffix_of(file_name: str, extension: str) -> bool:
    suffix = PurePosixPath(file_name).suffix.lower().lstrip(".")
    return suffix == extension or (suffix in ("jpeg", "jpe", "jfif") and extension == "jpg")


def encode_image(pixels: np.ndarray, extension: str | None) -> bytes:
    """Return pixels (H,W,3) as JPEG of high quality for ``jpg``, else as PNG."""
    if extension == "jpg":
        return bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _remove_exif(jpeg: bytes) -> bytes:
    """Return the same JPEG without its EXIF segments; the compressed pixels are unchanged."""
    out, at = bytearray(jpeg[:2]), 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if not (jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\x00\x00"):
            out += jpeg[at:end]
        at = end
    return bytes(out + jpeg[at:])
