"""Strict reading of tar files: what lenient readers skip silently is an error here.

Most readers lose the remaining members of a truncated tar, or of one with a damaged header, without
a message. Nothing is ever extracted, so a member's name is a key and never a path.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 512
INDEX_TYPE = np.dtype("<i8")
INDEX_ROW_BYTES = 4 * INDEX_TYPE.itemsize
_CHECKSUM = slice(148, 156)
_REGULAR, _EXTENDED = (b"0", b"\0"), (b"x", b"g")
MAX_EXTENDED_BYTES = 2**16
_RECORD = re.compile(rb"[0-9]+ ([^=\n]+)=")
# What an extended header may not replace: readers by position would not see it.
_LOCATING = re.compile(rb"path|size|linkpath|GNU\.sparse.*")


class TarError(ValueError):
    """A tar that is not complete and plain; the message says what is wrong, and where."""


class Member(NamedTuple):
    """A regular file in a tar; ``offset`` is that of its data, in bytes from the tar's start."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Return the part of the name that the files of one sample share."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """Return the part of the name in which the files of one sample differ."""
        return self.name.partition(".")[2]


def parse_header(header: bytes, at: int) -> Member:
    """Return the member of a header (512 bytes) at byte ``at``. Raises TarError."""
    member, kind = _parse(header, at)
    _check_regular(member, kind)
    return member


def _check_regular(member: Member, kind: bytes) -> None:
    if kind not in _REGULAR:
        raise TarError(f"member {member.name!r} is not a regular file")
    check_name(member.name)


def _parse(header: bytes, at: int) -> tuple[Member, bytes]:
    """Return the unchecked member of a header at byte ``at``, and its type."""
    if len(header) < BLOCK:
        raise TarError(f"truncated at byte {at + len(header)}, inside a header")
    try:
        checksum = _number(header[_CHECKSUM])
        size = _number(header[124:136])
    except ValueError:
        raise TarError(f"damaged header at byte {at}") from None
    # The checksum is the sum of all bytes, with spaces for its own field. The low half of Adler-32
    # is that sum plus one, modulo 65521, and takes a fiftieth of the time.
    summed = header[:148] + b" " * 8 + header[156:]
    if zlib.adler32(summed) & 0xFFFF != (1 + checksum) % 65521:
        raise TarError(f"damaged header at byte {at}: its checksum is wrong")
    name = _text(header[:100])
    if header[257:262] == b"ustar" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return Member(name, at + BLOCK, size), header[156:157]


def check_name(name: str) -> None:
    """Raise TarError unless a name is ``KEY.EXTENSION`` without a folder."""
    if "/" in name or "\\" in name or not name.partition(".")[0] or not name.partition(".")[2]:
        raise TarError(f"member name {name!r} is not KEY.jpg, KEY.png or KEY.json")


def members(descriptor: int) -> Iterator[Member]:
    """Yield all members of an open tar, in order. Raises TarError after the last valid one.

    Extended headers, in which writers keep fractions of a second, are passed over.
    """
    total, at = os.fstat(descriptor).st_size, 0
    while at < total:
        header = os.pread(descriptor, BLOCK, at)
        if header == bytes(BLOCK):
            if os.pread(descriptor, BLOCK, at + BLOCK) != bytes(BLOCK):
                raise TarError(f"truncated at byte {total}, inside its end marker")
            return
        member, kind = _parse(header, at)
        if kind not in _EXTENDED:
            _check_regular(member, kind)
        at = member.offset + member.size + -member.size % BLOCK
        if at > total:
            raise TarError(f"truncated at byte {total}, inside member {member.name!r}")
        if kind in _EXTENDED:
            _check_extended(descriptor, member)
        else:
            yield member
    raise TarError(f"truncated at byte {total}: its end marker is missing")


def _check_extended(descriptor: int, header: Member) -> None:
    """Raise TarError if an extended header names or places the next member in its own way."""
    if header.size > MAX_EXTENDED_BYTES:
        raise TarError(f"the extended header at byte {header.offset} is too large")
    records = os.pread(descriptor, header.size, header.offset)
    for record in _RECORD.finditer(records):
        if _LOCATING.fullmatch(record[1]):
            word = record[1].decode("ascii", "backslashreplace")
            raise TarError(
                f"the extended header at byte {header.offset} sets the {word} of a member; write "
                "the tar in the format ustar"
            )


def sample_rows(descriptor: int) -> Iterator[tuple[Member, Member]]:
    """Yield the (image, JSON) members of each sample, in order. Raises TarError.

    A sample is an image followed by a JSON with the same key.
    """
    image: Member | None = None
    for member in members(descriptor):
        if image is None:
            if member.extension not in ("jpg", "png"):
                raise TarError(f"member {member.name!r} is in the place of an image")
            image = member
        elif member.name == f"{image.key}.json":
            yield image, member
            image = None
        else:
            raise TarError(
                f"member {image.name!r} is followed by {member.name!r} instead of {image.key}.json"
            )
    if image is not None:
        raise TarError(f"member {image.name!r} is not followed by {image.key}.json")


def sample_index(descriptor: int) -> np.ndarray:
    """Return the index (samples, 4) of an open shard: offset and size of the image and the JSON.

    Raises TarError.
    """
    rows = [(*image[1:], *json[1:]) for image, json in sample_rows(descriptor)]
    return np.array(rows, dtype=INDEX_TYPE).reshape(-1, 4)


def _number(field: bytes) -> int:
    """Return an octal number that ends with a space or a zero byte. Raises ValueError."""
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError("not an octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
