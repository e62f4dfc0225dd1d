"""Names of files as they are written on any system, and lists of them.

Nothing here opens a file: a name becomes parts, without drive, server, ``.`` and ``..``.
"""

from __future__ import annotations

import re
from unicodedata import normalize
from urllib.parse import unquote

from pipeline.data.sources.values import decode_text

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".ppm", ".pgm"),
)
# Images of formats that are not read, to be named as such.
UNREADABLE_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".svg", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
_SUFFIX = re.compile(
    rf"({'|'.join((*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES))})$".replace(".", r"\."), re.I
)
_ENCODED_SLASH = re.compile("%2f|%5c", re.I)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: not a drive
_DRIVE = re.compile(r"[A-Za-z]:(?=/|$)")
_LOCAL_FILES = re.compile(r"[?&]d=([^&#]*)")  # Label Studio: /data/local-files/?d=PATH


def list_entries(data: bytes) -> list[str]:
    """Return the entries of a list, one a line, without blanks, quotes and further columns.

    Text is UTF-8 or, with a byte order mark, UTF-16; columns are separated by tabs.
    """
    text = decode_text(data, errors="replace")
    lines = (line.strip().partition("\t")[0].strip() for line in re.split(r"[\r\n]+", text))
    return [line.strip(line[0]) if line[0] in "\"'" else line for line in lines if line]


def image_stem(name: str) -> str:
    """Return a name without its suffix if that is one of an image: ``a.b`` of ``a.b.jpg``."""
    return _SUFFIX.sub("", name)


def path_parts(text: str) -> list[str]:
    """Return the folders and the file of a path or URL of any system, without ``.`` and ``..``.

    Drives, queries and leading ``..`` are dropped.
    """
    if local := _LOCAL_FILES.search(text):
        text = unquote(local[1])
    elif url := _URL.match(text):
        text = re.split("[?#]", text[url.end() :])[0]
    if _ENCODED_SLASH.search(text):
        text = unquote(text)
    parts: list[str] = []
    for part in _DRIVE.sub("", text.strip().replace("\\", "/").lstrip("/")).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return parts


def fold(text: str) -> str:
    """Return what remains of a name if case, Unicode form and encoding do not count."""
    if "%" in text:
        text = unquote(text)
    if text.isascii():
        return text.lower()
    return normalize("NFC", normalize("NFC", text).casefold())


def is_url(text: str) -> bool:
    """Return whether a path is written as a URL, or as Label Studio serves local files."""
    return bool(_URL.match(text) or _LOCAL_FILES.search(text))


def has_encoded_slash(text: str) -> bool:
    """Return whether a slash or backslash is percent-encoded."""
    return bool(_ENCODED_SLASH.search(text))
