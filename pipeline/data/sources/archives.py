"""Tar and zip archives as lists of members, each read by position: safe in many processes at once.

Member names that are absolute or lead upwards, links, devices, encrypted members and sizes that no
picture has are refused by name; nothing is unpacked to disk, and no more is inflated than a member
says it holds.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import UserError

MOST_MEMBERS = 50_000_000
LARGEST_MEMBER = 4 * 2**30
# Deflate reaches 1032; text that says little comes close to 100, pictures stay below 2.
MOST_INFLATION = 200
SMALL = 2**20  # smaller members may be inflated from however little
LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Refused(NamedTuple):
    """A member that is not taken, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Member:
    """One file in an archive. ``start`` is where its data lies, or its local header in a zip."""

    archive: str
    changed_ns: int
    start: int
    size: int
    packed: int = -1  # bytes in a zip; -1: in a tar
    deflated: bool = False
    crc: int = 0

    def read(self, limit: int) -> bytes:
        """All bytes. Raises OSError, or ValueError where they are damaged or over the limit."""
        if self.size > limit:
            raise ValueError(f"file is larger than the limit of {limit} bytes")
        descriptor = os.open(self.archive, os.O_RDONLY)
        try:
            if self.packed < 0:
                return _exactly(descriptor, self.start, self.size)
            return self._inflated(descriptor)
        finally:
            os.close(descriptor)

    def _inflated(self, descriptor: int) -> bytes:
        header = LOCAL_HEADER.unpack(_exactly(descriptor, self.start, LOCAL_HEADER.size))
        if header[0] != b"PK\x03\x04":
            raise ValueError("the zip is damaged: no local header")
        start = self.start + LOCAL_HEADER.size + header[9] + header[10]
        data = _exactly(descriptor, start, self.packed)
        if self.deflated:
            try:
                data = zlib.decompressobj(-15).decompress(data, self.size + 1)
            except zlib.error as error:
                raise ValueError(f"the zip is damaged: {error}") from None
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise ValueError("the zip is damaged: the checksum differs")
        return data


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, or a tar, compressed or not."""
    return zipfile.is_zipfile(path) or _is_tar(path)


def list_archive(path: Path) -> tuple[dict[str, Member], list[Refused]]:
    """The members that may be read, by name, and those that may not. Raises UserError."""
    refused: list[Refused] = []
    members: dict[str, Member] = {}
    try:
        listed = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path, refused)
    except UserError:
        raise
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged archive: {error}; fetch it again") from None
    for name, member, why in listed:
        plain = name.removeprefix("./")
        reason = why or _unsafe(plain, member)
        if reason is None and plain in members:
            reason = "is there twice; the first one is kept"
        if reason is None:
            members[plain] = member
        else:
            refused.append(Refused(name, reason))
    return members, refused


def _unsafe(name: str, member: Member) -> str | None:
    if not name or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "an absolute name"
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "a name with .."
    if any(ord(character) < 32 for character in name):
        return "a name with control characters"
    if not 0 <= member.size <= LARGEST_MEMBER:
        return f"{member.size} bytes, over the limit of {LARGEST_MEMBER}"
    if member.packed >= 0 and member.size > max(SMALL, MOST_INFLATION * member.packed):
        return f"{member.packed} bytes that would inflate to {member.size}"
    return None


Listed = list[tuple[str, Member, str | None]]


def _zip_members(path: Path) -> Listed:
    changed = path.stat().st_mtime_ns
    found: Listed = []
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist(), 1):
            _check_number(path, number)
            if info.is_dir():
                continue
            reason = None
            if info.flag_bits & 1:
                reason = "encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                reason = "packed in a way other than deflate; pack the zip again"
            elif (info.external_attr >> 16) & 0o170000 == 0o120000:
                reason = "a link"
            member = Member(
                str(path.absolute()),
                changed,
                info.header_offset,
                info.file_size,
                info.compress_size,
                info.compress_type == zipfile.ZIP_DEFLATED,
                info.CRC,
            )
            found.append((info.filename, member, reason))
    return found


def _tar_members(path: Path, refused: list[Refused]) -> Listed:
    length, changed = path.stat().st_size, path.stat().st_mtime_ns
    found: Listed = []
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below
    except tarfile.ReadError:
        raise UserError(
            f"{path}: a compressed tar can only be read from its start; decompress it first "
            f"(gunzip, bunzip2 or unxz) or use a zip"
        ) from None
    with archive:
        try:
            damage = None
            for number, info in enumerate(archive, 1):
                _check_number(path, number)
                if info.size < 0:  # which would lead back, and round and round
                    damage = f"{info.name!r} has {info.size} bytes; what follows is not read"
                    break
                if info.isdir():
                    continue
                reason = None if info.isreg() and not info.issparse() else "a link or special file"
                if reason is None and info.offset_data + info.size > length:
                    reason = "cut off: the tar ends inside it"
                member = Member(str(path.absolute()), changed, info.offset_data, info.size)
                found.append((info.name, member, reason))
            damage = damage or _damaged_end(path, archive.offset, length)
        except tarfile.ReadError as error:
            damage = f"the tar is cut after {len(found)} members: {error}"
    if damage:
        refused.append(Refused(path.name, damage))
    return found


def _check_number(path: Path, number: int) -> None:
    if number > MOST_MEMBERS:
        raise UserError(f"{path}: more than {MOST_MEMBERS} members, the limit")


def _damaged_end(path: Path, offset: int, length: int) -> str | None:
    """Why the end that tarfile found is not a true one, which is zeros alone; None where it is.

    To tarfile both a corrupt header and a file that stops between members look like the end.
    """
    if offset >= length:
        return "the tar has no end mark: it was cut, members may be absent"
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(2**20):
            if block.strip(b"\0"):
                return f"no tar header at byte {offset}; what follows is not read"
    return None


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError):
        return False


def _exactly(descriptor: int, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, start) if size else b""
    while len(data) < size:  # one read brings at most 2 GiB
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise ValueError("the archive ends inside it")
        data += more
    return data
