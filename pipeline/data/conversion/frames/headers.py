"""Read the EXIF orientation of many images without reading their pixels."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from PIL import ExifTags, Image

from pipeline.data.sources.files import File
from pipeline.data.sources.record import SourceImage
from pipeline.data.transforms.decode import FORMATS, TIFF_SIGNATURES, may_have_orientation
from pipeline.progress import Progress

HEADER_BYTES = 2**16
MAX_HEADER_BYTES = 2**30
READERS, IMAGES_PER_READER = 8, 64


class Header(NamedTuple):
    """EXIF orientation 2..8 of an image, and its width and height as stored."""

    orientation: int
    size: tuple[int, int]


def read_headers(
    images: Iterable[SourceImage], progress: Progress
) -> Iterator[tuple[SourceImage, Header]]:
    """Yield the images that have an EXIF orientation, in their order, with their headers."""
    remaining = iter(images)
    with ThreadPoolExecutor(READERS, "headers") as pool:
        while batch := list(islice(remaining, READERS * IMAGES_PER_READER)):
            parts = [
                batch[at : at + IMAGES_PER_READER] for at in range(0, len(batch), IMAGES_PER_READER)
            ]
            for part, headers in zip(parts, pool.map(_read_headers, parts), strict=True):
                yield from ((i, h) for i, h in zip(part, headers, strict=True) if h)
                progress.advance(len(part))


def _read_headers(images: list[SourceImage]) -> list[Header | None]:
    return [_read_header(image.image) for image in images]


def _read_header(image: File | bytes | None) -> Header | None:
    """Return the header of an image with an EXIF orientation; None if unreadable or without one."""
    if image is None:
        return None
    try:
        start = image[:HEADER_BYTES] if isinstance(image, bytes) else image.read_start(HEADER_BYTES)
        # The metadata of a WebP is at its end, of a TIFF anywhere.
        whole = start[:4] in TIFF_SIGNATURES or (start[12:16] == b"VP8X" and bool(start[20] & 8))
        if not whole and not may_have_orientation(start):
            return None
        if not whole and (header := _parse_header(start)):
            return header if header.orientation != 1 else None
        data = image if isinstance(image, bytes) else image.read(MAX_HEADER_BYTES)
    except (OSError, ValueError):
        return None  # reported when the image is converted
    header = _parse_header(data) if may_have_orientation(data) else None
    return header if header and header.orientation != 1 else None


def _parse_header(data: bytes) -> Header | None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = image.size
    except Exception:  # damaged metadata raises nearly anything
        return None
    if orientation not in range(1, 9):
        return None
    if data[:4] in TIFF_SIGNATURES and orientation >= 5:  # Pillow gives the size of the upright one
        width, height = height, width
    return Header(orientation, (width, height))
