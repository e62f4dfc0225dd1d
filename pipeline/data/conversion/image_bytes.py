"""Image bytes fit to be stored: the original ones where they are sound."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.data.conversion.near_duplicates import look
from pipeline.data.sources.files import File, LooseFile
from pipeline.data.transforms.decode import (
    MAX_PIXELS,
    ImageError,
    decode_image,
    image_format,
    orientation,
    turn_upright,
)
from pipeline.errors import UserError

# Beyond four bytes a pixel at the pixel limit no honest picture goes.
MAX_BYTES = 4 * MAX_PIXELS


class StoredImage(NamedTuple):
    """Bytes to store, their extension and size; ``notes`` say what had to be mended.

    ``look`` is the hash by which near duplicates are found.
    """

    data: bytes
    extension: str
    width: int
    height: int
    notes: list[str]
    look: bytes


def read_image(image: File | bytes) -> bytes:
    """The bytes of a picture file. Raises ImageError, or UserError where the file is gone."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read(MAX_BYTES)
    except FileNotFoundError as error:
        # It was there when the source was listed, so nothing is wrong with the data.
        where = image.path if isinstance(image, LooseFile) else error.filename
        raise UserError(
            f"{where}: gone, or not seen by all nodes; keep the source where it is until the end"
        ) from None
    except OSError as error:
        raise ImageError(f"image file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ImageError(str(error)) from None


def stored_image(
    data: bytes, file_name: str, size: tuple[int, int] | None, *, upright: bool = False
) -> StoredImage:
    """Decode bytes completely and decide how to store them. Raises ImageError.

    ``size`` (width, height) is what the annotation says. Boxes are taken to mean the pixels as
    they are stored, as most annotation tools ignore the EXIF orientation; only where the size of
    the annotation is that of the upright picture alone, or with ``upright``, the picture is turned.
    Either way, what is stored has no orientation left, so that every reader sees the pixels that
    the boxes mean.
    """
    pixels = decode_image(data, upright=False)
    extension, turn = image_format(data), orientation(data)
    notes = []
    height, width = pixels.shape[:2]
    sideways = turn >= 5 and size == (height, width) != (width, height)
    if sideways or (upright and turn != 1):
        pixels = turn_upright(pixels, turn)
        data = _encode(pixels, extension)
        height, width = pixels.shape[:2]
        why = "the annotated size" if sideways else "the format of the labels"
        notes.append(f"turned upright, as {why} asks")
    elif turn != 1:
        data = _without_exif(data) if extension == "jpg" else _encode(pixels, extension)
        notes.append("EXIF orientation removed; boxes mean the pixels as stored")
    elif extension is None:
        data = _encode(pixels, None)
        notes.append("not JPEG or PNG; stored as PNG")
    if extension and not _named_right(file_name, extension):
        notes.append(f"{extension.upper()} bytes under another name; stored as .{extension}")
    notes += _size_notes(size, width, height)
    return StoredImage(data, extension or "png", width, height, notes, look(pixels))


def _size_notes(size: tuple[int, int] | None, width: int, height: int) -> list[str]:
    if size is None or size == (width, height):
        return []
    return [f"annotated size {size[0]}x{size[1]}; the picture's is {width}x{height}"]


def _named_right(file_name: str, extension: str) -> bool:
    suffix = PurePosixPath(file_name).suffix.lower().lstrip(".")
    return suffix == extension or (suffix in ("jpeg", "jpe", "jfif") and extension == "jpg")


def _encode(pixels: np.ndarray, extension: str | None) -> bytes:
    if extension == "jpg":
        return bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _without_exif(jpeg: bytes) -> bytes:
    """The same JPEG without its EXIF segments; the compressed pixels are untouched."""
    out, at = bytearray(jpeg[:2]), 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if not (jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\x00\x00"):
            out += jpeg[at:end]
        at = end
    return bytes(out + jpeg[at:])
