"""Match tables and predictions as files: safetensors, without pickle."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.metrics import MatchTable

Table = TypeVar("Table", MatchTable, RawPredictions)
_IDS = "image_ids"  # the only column of texts: as JSON in bytes


def encode(table: MatchTable | RawPredictions) -> bytes:
    """Return the columns of a table as the content of a file."""
    columns: dict[str, Any] = {
        field.name: np.ascontiguousarray(getattr(table, field.name)) for field in fields(table)
    }
    ids = json.dumps([str(name) for name in columns[_IDS]]).encode()
    data: bytes = save({**columns, _IDS: np.frombuffer(ids, np.uint8)})
    return data


def decode(kind: type[Table], data: bytes) -> Table:
    """Return the table in a file. Raises ValueError if it is not one."""
    try:
        columns: dict[str, Any] = load(data)
        names = json.loads(columns[_IDS].tobytes())
        return kind(**{**columns, _IDS: np.array(names, np.str_)})
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from None
