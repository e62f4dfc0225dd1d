"""Checkpoint metas for tests, and checkpoints in the format of earlier versions."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints.format import tensors_sha256
from pipeline.checkpoints.meta import CheckpointMeta, DataFingerprints
from pipeline.storage.folder import Storage

SPEC = {
    "backbone": "slim",
    "neck": "retinanet",
    "num_classes": 1,
    "image_size": 64,
    "neck_channels": 64,
    "norm": "batch",
}


def example_meta(step: int = 1, ap: float | None = None, **fields: Any) -> CheckpointMeta:
    """Return the meta of a step that was evaluated if ``ap`` is given."""
    content: dict[str, Any] = {
        "epoch": step / 2,
        "world_size": 1,
        "classes": ["a"],
        "spec": SPEC,
        "config": {},
        "data": DataFingerprints(train="abc"),
        "metrics": None if ap is None else {"val/ap": ap},
    }
    return CheckpointMeta(step=step, **{**content, **fields})


def write_format_2(folder: Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint as format 2 had it: metrics and early stopping at the top level."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "state.pt")
    data = (folder / "state.pt").read_bytes()
    files = {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    content = {
        "format_version": 2,
        "saved": time.time(),
        **meta,
        "weights_sha256": tensors_sha256(state["model"]),
        "ema_sha256": tensors_sha256(state["ema"]),
        "files": files,
    }
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps({**content, "sha256": own}, indent=1))


class BrokenStorage(Storage):
    """A storage whose connection breaks after some bytes of every large file."""

    def __init__(self, uri: str, capacity: int) -> None:
        super().__init__(uri)
        self.capacity = capacity

    def child(self, name: str) -> Storage:
        return BrokenStorage(super().child(name).uri, self.capacity)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        with super().open(name) as stream:
            yield BrokenStream(stream, self.capacity)


class BrokenStream:
    """A stream whose connection breaks after some bytes."""

    def __init__(self, stream: Any, capacity: int) -> None:
        self.stream, self.capacity = stream, capacity

    def write(self, data: Any) -> int:
        self.capacity -= memoryview(data).nbytes
        if self.capacity < 0:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return int(self.stream.write(data))

    def flush(self) -> None:
        self.stream.flush()
