"""List the members of tar and zip archives and read each by its position.

Many processes can read from one archive at a time. Nothing is unpacked to disk, and at most as much
is inflated as a member's header states. Members with absolute names or names that lead out of the
archive, links, devices, encrypted members and members of implausible size, packed or not, are
skipped and reported. Backslashes in names separate folders, as old tools on Windows write them.
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

MAX_MEMBERS = 50_000_000
MAX_MEMBER_BYTES = 4 * 2**30
# Deflate reaches 1032. Repetitive text comes close to 100; images stay below 2.
MAX_INFLATION = 200
UNCHECKED_INFLATION_BYTES = 2**20  # members up to this size may have any ratio
# Data that cannot be compressed grow by less than a thousandth.
MAX_PACKED_RATIO, UNCHECKED_PACKED_BYTES = 2, 2**16
ZIP_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class SkippedMember(NamedTuple):
    """A member that cannot be read, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Member:
    """One file in an archive; ``start`` is the offset of its data, in a zip of its local header."""

    archive: str
    modified_ns: int
    start: int
    size: int
    packed: int = -1  # compressed bytes in a zip; -1 for a member of a tar
    deflated: bool = False
    crc: int = 0

    def read(self, limit: int) -> bytes:
        """Return all bytes. Raises OSError, or ValueError if they are damaged or over the limit."""
        if self.size > limit:
            raise ValueError(f"file is larger than the limit of {limit} bytes")
        descriptor = os.open(self.archive, os.O_RDONLY)
        try:
            if self.packed < 0:
                return _read_exactly(descriptor, self.start, self.size)
            return self._inflate(descriptor)
        finally:
            os.close(descriptor)

    def read_start(self, limit: int) -> bytes:
        """Return about the first ``limit`` bytes, unchecked. Raises OSError or ValueError."""
        descriptor = os.open(self.archive, os.O_RDONLY)
        try:
            if self.packed < 0:
                return _read_exactly(descriptor, self.start, min(self.size, limit))
            start = self._packed_start(descriptor)
            data = _read_exactly(descriptor, start, min(self.packed, limit))
            return zlib.decompressobj(-15).decompress(data, limit) if self.deflated else data
        except zlib.error as error:
            raise ValueError(f"the zip is damaged: {error}") from None
        finally:
            os.close(descriptor)

    def _packed_start(self, descriptor: int) -> int:
        """Return the offset of the data of a member of a zip."""
        header = ZIP_LOCAL_HEADER.unpack(
            _read_exactly(descriptor, self.start, ZIP_LOCAL_HEADER.size)
        )
        if header[0] != b"PK\x03\x04":
            raise ValueError("the zip is damaged: local header not found")
        return int(self.start + ZIP_LOCAL_HEADER.size + header[9] + header[10])

    def _inflate(self, descriptor: int) -> bytes:
        data = _read_exactly(descriptor, self._packed_start(descriptor), self.packed)
        if self.deflated:
            try:
                data = zlib.decompressobj(-15).decompress(data, self.size + 1)
            except zlib.error as error:
                raise ValueError(f"the zip is damaged: {error}") from None
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise ValueError("the zip is damaged: the checksum differs")
        return data


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or a tar, compressed or not."""
    return zipfile.is_zipfile(path) or _is_tar(path)


def list_archive(path: Path) -> tuple[dict[str, Member], list[SkippedMember]]:
    """Return the readable members by name, and the skipped ones. Raises UserError."""
    skipped: list[SkippedMember] = []
    members: dict[str, Member] = {}
    try:
        listed = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path, skipped)
    except UserError:
        raise
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged archive: {error}; download it again") from None
    for listed_name, member, listed_reason in listed:
        name = listed_name.replace("\\", "/").removeprefix("./")
        if name.endswith("/"):
            continue
        reason = listed_reason or _reject_reason(name, member)
        if reason is None and name in members:
            reason = "duplicate name; the first one is kept"
        if reason is None:
            members[name] = member
        else:
            skipped.append(SkippedMember(listed_name, reason))
    return members, skipped


def _reject_reason(name: str, member: Member) -> str | None:
    if not name or name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "absolute name"
    if ".." in PurePosixPath(name).parts:
        return "name contains .."
    if any(ord(character) < 32 for character in name):
        return "name contains control characters"
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        return f"{member.size} bytes, over the limit of {MAX_MEMBER_BYTES}"
    if member.packed >= 0 and member.size > max(
        UNCHECKED_INFLATION_BYTES, MAX_INFLATION * member.packed
    ):
        return f"{member.packed} bytes that would inflate to {member.size}"
    if member.packed > MAX_PACKED_RATIO * member.size + UNCHECKED_PACKED_BYTES:
        return f"{member.packed} bytes that would inflate to only {member.size}"
    return None


Listing = list[tuple[str, Member, str | None]]


def _zip_members(path: Path) -> Listing:
    length, modified = path.stat().st_size, path.stat().st_mtime_ns
    found: Listing = []
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist(), 1):
            _check_member_count(path, number)
            if info.is_dir():
                continue
            reason = None
            if info.flag_bits & 1:
                reason = "encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                reason = "compressed by a method other than deflate; create the zip again"
            elif (info.external_attr >> 16) & 0o170000 == 0o120000:
                reason = "link"
            elif info.header_offset + ZIP_LOCAL_HEADER.size + info.compress_size > length:
                reason = "truncated: the zip ends inside this member"
            member = Member(
                str(path.absolute()),
                modified,
                info.header_offset,
                info.file_size,
                info.compress_size,
                info.compress_type == zipfile.ZIP_DEFLATED,
                info.CRC,
            )
            found.append((_zip_name(info), member, reason))
    return found


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member. Some tools write UTF-8 without the flag that says so."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _tar_members(path: Path, skipped: list[SkippedMember]) -> Listing:
    length, modified = path.stat().st_size, path.stat().st_mtime_ns
    found: Listing = []
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below
    except tarfile.ReadError:
        raise UserError(
            f"{path}: a compressed tar can only be read from its start; decompress it first "
            "(gunzip, bunzip2 or unxz) or use a zip"
        ) from None
    with archive:
        try:
            damage = None
            for number, info in enumerate(archive, 1):
                _check_member_count(path, number)
                if info.size < 0:  # would lead back to an earlier header, in an endless loop
                    damage = f"{info.name!r} has {info.size} bytes; the rest is not read"
                    break
                if info.isdir():
                    continue
                reason = None if info.isreg() and not info.issparse() else "link or special file"
                if reason is None and info.offset_data + info.size > length:
                    reason = "truncated: the tar ends inside this member"
                member = Member(str(path.absolute()), modified, info.offset_data, info.size)
                found.append((info.name, member, reason))
            damage = damage or _find_damaged_end(path, archive.offset, length)
        except tarfile.ReadError as error:
            damage = f"the tar is truncated after {len(found)} members: {error}"
    if damage:
        skipped.append(SkippedMember(path.name, damage))
    return found


def _check_member_count(path: Path, number: int) -> None:
    if number > MAX_MEMBERS:
        raise UserError(f"{path}: more than {MAX_MEMBERS} members, which is the limit")


def _find_damaged_end(path: Path, offset: int, length: int) -> str | None:
    """Return why the end that tarfile found is not a valid one; None if it is.

    A valid end consists of zeros. tarfile also takes a corrupt header for the end, and a file that
    stops between two members.
    """
    if offset >= length:
        return "end-of-archive marker not found: the tar is truncated, members may be missing"
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(2**20):
            if block.strip(b"\0"):
                return f"invalid tar header at byte {offset}; the rest is not read"
    return None


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError):
        return False


def _read_exactly(descriptor: int, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, start) if size else b""
    while len(data) < size:  # one call reads at most 2 GiB
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise ValueError("the archive ends inside this member")
        data += more
    return data
