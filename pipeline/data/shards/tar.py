"""Tar structure read strictly: what lenient readers skip in silence is an error here.

A tar that is cut, or has one damaged header, loses its remaining members without a word in most
readers. Nothing is ever extracted, so a member's name is a key and never a path.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 512
INDEX_TYPE = np.dtype("<i8")
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0")


class TarError(ValueError):
    """This is not a whole, plain tar; the message says what is wrong and where."""


class Member(NamedTuple):
    """A regular file in a tar: where its data lies, in bytes from the start of the tar."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """What the files of one sample share."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """What tells the files of one sample apart."""
        return self.name.partition(".")[2]


def parse_header(header: bytes, at: int) -> Member:
    """The member whose header (512 bytes) lies at byte ``at``. Raises TarError."""
    if len(header) < BLOCK:
        raise TarError(f"cut at byte {at + len(header)}, inside a header")
    try:
        checksum = _number(header[_CHECKSUM])
        size = _number(header[124:136])
    except ValueError:
        raise TarError(f"damaged header at byte {at}") from None
    # The checksum is the sum of all bytes, its own field counted as eight spaces. Adler's low half
    # is one more than that, modulo 65521, at a fiftieth of the time.
    summed = header[:148] + b" " * 8 + header[156:]
    if zlib.adler32(summed) & 0xFFFF != (1 + checksum) % 65521:
        raise TarError(f"damaged header at byte {at}: its checksum is wrong")
    name = _text(header[:100])
    if header[257:262] == b"ustar" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if header[156:157] not in _REGULAR:
        raise TarError(f"member {name!r} is not a regular file")
    check_name(name)
    return Member(name, at + BLOCK, size)


def check_name(name: str) -> None:
    """Raise TarError unless a name is ``KEY.EXTENSION`` without any folder."""
    if "/" in name or "\\" in name or not name.partition(".")[0] or not name.partition(".")[2]:
        raise TarError(f"member name {name!r} is not KEY.jpg, KEY.png or KEY.json")


def members(descriptor: int) -> Iterator[Member]:
    """All members of an open tar, in order. Raises TarError after the last sound one."""
    total, at = os.fstat(descriptor).st_size, 0
    while at < total:
        header = os.pread(descriptor, BLOCK, at)
        if header == bytes(BLOCK):
            if os.pread(descriptor, BLOCK, at + BLOCK) != bytes(BLOCK):
                raise TarError(f"cut at byte {total}, inside the mark of its end")
            return
        member = parse_header(header, at)
        at = member.offset + member.size + -member.size % BLOCK
        if at > total:
            raise TarError(f"cut at byte {total}, inside member {member.name!r}")
        yield member
    raise TarError(f"cut at byte {total}: no mark of its end follows")


def sample_rows(descriptor: int) -> Iterator[tuple[Member, Member]]:
    """The (image, JSON) members of each sample, in order. Raises TarError.

    A sample is an image and a JSON of the same key, one after the other.
    """
    image: Member | None = None
    for member in members(descriptor):
        if image is None:
            if member.extension not in ("jpg", "png"):
                raise TarError(f"member {member.name!r} stands where an image should be")
            image = member
        elif member.name == f"{image.key}.json":
            yield image, member
            image = None
        else:
            raise TarError(
                f"member {image.name!r} has no {image.key}.json after it but {member.name!r}"
            )
    if image is not None:
        raise TarError(f"member {image.name!r} has no {image.key}.json after it")


def sample_index(descriptor: int) -> np.ndarray:
    """The index (samples, 4) of an open shard: where image and JSON lie, and their sizes.

    Raises TarError.
    """
    rows = [(*image[1:], *json[1:]) for image, json in sample_rows(descriptor)]
    return np.array(rows, dtype=INDEX_TYPE).reshape(-1, 4)


def _number(field: bytes) -> int:
    """An octal number, ended by a space or a zero byte. Raises ValueError."""
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError("not an octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
