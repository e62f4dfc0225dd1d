"""One checkpoint: tensors in ``state.pt``, all else in ``meta.json``, which is written last.

A folder without ``meta.json`` is not a checkpoint: its writing was interrupted. ``meta.json`` holds
the sha256 of ``state.pt`` and of itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.meta import CheckpointMeta, EarlyStoppingState, FileDigest
from pipeline.errors import UserError
from pipeline.storage.document import DocumentError
from pipeline.storage.folder import Storage, absolute

META, STATE = "meta.json", "state.pt"
OLDEST_FORMAT = 2  # format 1 was Ray Train's


class DamagedCheckpoint(UserError):
    """A checkpoint that is incomplete, or whose bytes are not the ones that were written."""


def save_checkpoint(
    folder: Storage | Path | str,
    state: Mapping[str, Any],
    meta: CheckpointMeta,
    check: Callable[[], None] = lambda: None,
) -> CheckpointMeta:
    """Write a checkpoint; until the last moment the folder does not hold one. Raises OSError.

    ``check`` is called before anything is written and before the last file; it may raise.
    ``state`` holds tensors on the CPU and plain containers. Returns ``meta`` as written: with the
    time, the checksum of ``state.pt``, and those of the state's ``model`` and ``ema`` if present.
    """
    storage = _storage(folder)
    check()
    storage.create()
    storage.delete(META)
    with storage.open(STATE) as stream:
        file: Any = _HashingWriter(stream)
        torch.save(dict(state), file)
        file.raise_error()
    written = meta.model_copy(
        update={
            "saved": time.time(),
            "weights_sha256": tensors_sha256(state["model"]) if "model" in state else "",
            "ema_sha256": tensors_sha256(state["ema"]) if "ema" in state else "",
            "files": {STATE: FileDigest(bytes=file.size, sha256=file.sha256.hexdigest())},
        }
    )
    check()
    _write_meta(storage, written)
    return written


def add_evaluation(
    folder: Storage | Path | str,
    metrics: Mapping[str, float],
    early_stopping: EarlyStoppingState,
    temperature: float | None = None,
    records: Sequence[str] = (),
) -> None:
    """Add the results of an evaluation to ``meta.json``, atomically. Raises as `load_meta`.

    ``records`` replace those of the checkpoint: they are what is not sent now.
    """
    storage = _storage(folder)
    update = {
        "metrics": dict(metrics),
        "temperature": temperature,
        "early_stopping": early_stopping,
        "records": list(records),
    }
    _write_meta(storage, load_meta(storage).model_copy(update=update))


def load_meta(folder: Storage | Path | str) -> CheckpointMeta:
    """Read ``meta.json`` of a checkpoint.

    Raises DamagedCheckpoint if the folder does not hold a complete one, UserError if another
    version of this software wrote it, OSError if it cannot be read.
    """
    storage = _storage(folder)
    try:
        content = json.loads(storage.read(META))
        version, sha256 = content["format_version"], content.get("sha256")
    except FileNotFoundError:
        raise DamagedCheckpoint(
            f"{storage} is not a complete checkpoint: {META} not found"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{storage} is damaged: {META}: {error}") from None
    _check_version(storage, version)
    content = {key: value for key, value in content.items() if key != "sha256"}
    if sha256 != _own_sha256(content):
        raise DamagedCheckpoint(f"{storage} is damaged: the sha256 of {META} differs")
    try:
        return CheckpointMeta.from_content(content, META)
    except DocumentError as error:
        raise DamagedCheckpoint(f"{storage} is damaged: {error}") from None


def load_state(folder: Storage | Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read and verify the tensors of a checkpoint, unpickling only containers and tensors.

    Raises what `load_meta` raises, and DamagedCheckpoint if a byte differs.
    """
    storage = _storage(folder)
    data = _verified_state(storage)
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def verify_checkpoint(folder: Storage | Path | str) -> CheckpointMeta:
    """Read all of a checkpoint, verify its checksums, return its meta. Raises as `load_state`."""
    storage = _storage(folder)
    _verified_state(storage)
    return load_meta(storage)


def load_averaged_weights(folder: Storage | Path | str) -> dict[str, Tensor]:
    """Return the averaged (EMA) weights of a checkpoint, which are registered, on the CPU."""
    weights: dict[str, Tensor] = load_state(folder)["ema"]
    return weights


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the bytes of all tensors (C order, little-endian), sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_version(storage: Storage, version: Any) -> None:
    current = CheckpointMeta.FORMAT_VERSION
    if not isinstance(version, int):
        raise DamagedCheckpoint(f"{storage} is damaged: {META}: format_version is {version!r}")
    if version > current:
        raise UserError(
            f"{storage} has checkpoint format {version}, newer than the {current} that this "
            "version reads; update the software"
        )
    if version < OLDEST_FORMAT:
        raise UserError(
            f"{storage} has checkpoint format {version}, older than the {OLDEST_FORMAT} that this "
            "version still reads; restart the training under another --run name"
        )


def _write_meta(storage: Storage, meta: CheckpointMeta) -> None:
    content = meta.model_dump(mode="json")
    storage.write(META, json.dumps({**content, "sha256": _own_sha256(content)}, indent=1).encode())


def _verified_state(storage: Storage) -> bytes:
    expected = load_meta(storage).files[STATE]
    try:
        data = storage.read(STATE)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{storage} is damaged: {STATE} not found") from None
    if len(data) != expected.bytes:
        raise DamagedCheckpoint(
            f"{storage} is damaged: {STATE} has {len(data)} bytes, expected {expected.bytes}"
        )
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise DamagedCheckpoint(f"{storage} is damaged: the sha256 of {STATE} differs")
    return data


def _own_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _storage(folder: Storage | Path | str) -> Storage:
    return folder if isinstance(folder, Storage) else Storage(absolute(str(folder)))


class _HashingWriter:
    """A binary file that is hashed while it is written.

    torch replaces most errors of a file by a RuntimeError about a wrong position, and writes again
    while it cleans up. Therefore the methods that torch calls drop everything after an OSError, and
    `raise_error` raises it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self.sha256, self.size = stream, hashlib.sha256(), 0
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
            self.sha256.update(data)
            self.size += size
        return size

    def flush(self) -> None:
        """Do nothing: the storage flushes the stream, outside of torch."""

    def raise_error(self) -> None:
        """Raise the OSError that has cut the file short, if there was one."""
        if self._error is not None:
            raise self._error
