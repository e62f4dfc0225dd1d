"""One checkpoint: tensors in ``state.pt``, everything readable in ``meta.json``, which comes last.

A folder without ``meta.json`` is no checkpoint: its writing was interrupted. ``meta.json`` holds
the sha256 of ``state.pt`` and of itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.storage.folder import Storage, absolute

FORMAT_VERSION = 2
META, STATE = "meta.json", "state.pt"


class DamagedCheckpoint(UserError):
    """A checkpoint that is incomplete, or whose bytes are not the ones that were written."""


def save_checkpoint(
    folder: Storage | Path | str, state: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write a checkpoint; until the last instant the folder holds none. Raises OSError.

    ``state`` holds tensors on the CPU and plain containers; of its dicts of tensors ``model`` and
    ``ema``, if there, ``meta.json`` gets ``weights_sha256`` and ``ema_sha256``.
    """
    storage = _storage(folder)
    storage.create()
    storage.delete(META)
    with storage.open(STATE) as stream:
        file: Any = _Hashing(stream)
        torch.save(dict(state), file)
    content = {
        "format_version": FORMAT_VERSION,
        "saved": time.time(),
        **meta,
        **{
            name: tensors_sha256(state[key])
            for name, key in (("weights_sha256", "model"), ("ema_sha256", "ema"))
            if key in state
        },
        "files": {STATE: {"bytes": file.size, "sha256": file.sha256.hexdigest()}},
    }
    _write_meta(storage, content)


def amend_meta(folder: Storage | Path | str, more: Mapping[str, Any]) -> None:
    """Add to the readable half in one instant. Raises what `load_meta` raises."""
    storage = _storage(folder)
    _write_meta(storage, {**load_meta(storage), **more})


def load_meta(folder: Storage | Path | str) -> dict[str, Any]:
    """The readable half of a checkpoint.

    Raises DamagedCheckpoint if the folder holds no complete one, UserError if a newer version
    wrote it, OSError if it cannot be read.
    """
    storage = _storage(folder)
    try:
        meta: dict[str, Any] = json.loads(storage.read(META))
        version, sha256 = meta["format_version"], meta.get("sha256")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{storage} is not a complete checkpoint: no {META}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{storage} is damaged: {META}: {error}") from None
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise UserError(
            f"{storage} has checkpoint format {version}, {'newer' if newer else 'other'} than the "
            f"{FORMAT_VERSION} that this version reads; "
            + ("update the software" if newer else "begin the run anew")
        )
    content = {key: value for key, value in meta.items() if key != "sha256"}
    if sha256 != _own_sha256(content):
        raise DamagedCheckpoint(f"{storage} is damaged: the sha256 of {META} differs")
    return meta


def load_state(folder: Storage | Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The tensors of a checkpoint, verified; nothing is unpickled beyond containers and tensors.

    Raises what `load_meta` raises, and DamagedCheckpoint if a byte differs.
    """
    storage = _storage(folder)
    data = _verified(storage)
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def verify_checkpoint(folder: Storage | Path | str) -> dict[str, Any]:
    """Read all of a checkpoint and compare the sums; its readable half. Raises as `load_state`."""
    storage = _storage(folder)
    _verified(storage)
    return load_meta(storage)


def load_averaged_weights(folder: Storage | Path | str) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, on the CPU: what is registered."""
    weights: dict[str, Tensor] = load_state(folder)["ema"]
    return weights


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over the bytes of all tensors (C order, little-endian) in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_meta(storage: Storage, meta: Mapping[str, Any]) -> None:
    content = {key: value for key, value in meta.items() if key != "sha256"}
    storage.write(META, json.dumps({**content, "sha256": _own_sha256(content)}, indent=1).encode())


def _verified(storage: Storage) -> bytes:
    expected = load_meta(storage)["files"][STATE]
    try:
        data = storage.read(STATE)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{storage} is damaged: no {STATE}") from None
    if len(data) != expected["bytes"]:
        raise DamagedCheckpoint(
            f"{storage} is damaged: {STATE} has {len(data)} bytes, not {expected['bytes']}"
        )
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedCheckpoint(f"{storage} is damaged: the sha256 of {STATE} differs")
    return data


def _own_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _storage(folder: Storage | Path | str) -> Storage:
    return folder if isinstance(folder, Storage) else Storage(absolute(str(folder)))


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._stream.write(data)
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        self._stream.flush()
