"""The records of a spool, one line of JSON each."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class NewerRecordError(ValueError):
    """A record of a type that only newer versions of this software know."""


class _Record(msgspec.Struct, kw_only=True, tag_field="type"):
    time: int  # milliseconds since 1970


class MetricPoints(_Record, tag="metrics"):
    """One point for each metric. Without a step it is the seconds since the run was created."""

    metrics: dict[str, float]
    step: int | None


class TagRecord(_Record, tag="tag"):
    """A tag of the run."""

    key: str
    value: str


class StatusRecord(_Record, tag="status"):
    """A new status of the run."""

    status: RunStatus


class FileRecord(_Record, tag="file"):
    """A file in the spool that becomes an artifact in ``folder``."""

    path: str
    folder: str


SpoolRecord = MetricPoints | TagRecord | StatusRecord | FileRecord
_TYPES = frozenset({"metrics", "tag", "status", "file"})


def encode(record: SpoolRecord) -> bytes:
    """Return the record as one line."""
    # Not msgspec's own encoder, which writes NaN and infinity as null.
    return json.dumps(msgspec.to_builtins(record)).encode() + b"\n"


def decode(line: bytes) -> SpoolRecord:
    """Return the record of a line.

    Raises NewerRecordError if its type is unknown, and ValueError if it is not a record.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("a record is a JSON object")
    content = content if "type" in content else _upgrade(content)
    kind = content["type"]
    if isinstance(kind, str) and kind not in _TYPES:
        raise NewerRecordError(f"unknown type of record {kind!r}")
    return msgspec.convert(content, SpoolRecord)


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record of the first format, which had no type, in the current one."""
    match content:
        case {"metrics": _}:
            return {**content, "type": "metrics"}
        case {"tag": [key, value]}:
            return {"type": "tag", "time": content.get("time"), "key": key, "value": value}
        case {"file": path}:
            folder = content.get("folder")
            return {"type": "file", "time": content.get("time"), "path": path, "folder": folder}
        case {"status": _}:
            return {**content, "type": "status"}
    raise ValueError("not a record of a run")
