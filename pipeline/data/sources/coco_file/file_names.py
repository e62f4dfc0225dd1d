"""The names of the image files in a COCO JSON: ``file_name``, or the end of ``coco_url``."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.data.sources.coco_file.tree import Row
from pipeline.data.sources.paths import path_parts

_FILE_NAME, _COCO_URL = (
    re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.){1,4096}")' % key)
    for key in (b"file_name", b"coco_url")
)


def read_file_name(row: Row) -> Any:
    """Return the file name of an image as written.

    Without one, as in LVIS, it is the folder and the file of ``coco_url``.
    """
    name, url = row.get("file_name"), row.get("coco_url")
    return _end_of_url(url) if name in (None, "") and isinstance(url, str) else name


def find_file_names(text: bytes) -> list[str]:
    """Return the file names of all images in a JSON that is searched as text, not parsed."""
    if names := _FILE_NAME.findall(text):
        return _decode(names)
    return [_end_of_url(url) for url in _decode(_COCO_URL.findall(text))]


def _end_of_url(url: str) -> str:
    parts = path_parts(url)[1 if "://" in url else 0 :]
    return "/".join(parts[-2:])


def _decode(quoted: list[bytes]) -> list[str]:
    found = []
    for one in quoted:
        try:
            found.append(str(json.loads(one.decode(errors="replace"), strict=False)))
        except ValueError:  # no valid escapes
            continue
    return found
