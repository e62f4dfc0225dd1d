"""Read weights to start from: a file, a URL, a registered version, a checkpoint or a run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.anchor_shapes import AnchorShapes
from pipeline.errors import UserError
from pipeline.pretrained.download import download
from pipeline.registry.load import load_detector
from pipeline.storage.checksum import file_sha256

# The keys under which checkpoints of this and other projects have the weights, best first.
_WEIGHT_KEYS = ("ema", "state_dict", "model_state_dict", "model")


class Weights(NamedTuple):
    """Tensors by name; the rest is known if they are a whole detector of this project."""

    source: str
    state: dict[str, Tensor]
    backbone: str | None = None
    classes: list[str] | None = None
    anchors: AnchorShapes | None = None


def read_weights(uri: str, sha256: str | None = None, tracking_uri: str | None = None) -> Weights:
    """Read the weights at a URI onto the CPU; unpickles tensors and containers only.

    The URI is a ``.pth``, ``.pt`` or ``.safetensors`` file or http(s) URL, ``models:/NAME@ALIAS``,
    the folder of a checkpoint (or its URI in shared storage), or the folder of a run: then its
    checkpoint of the highest score on ``data.val``, or the last one if none was evaluated. Raises
    UserError, and OutageError if a server does not respond.
    """
    if uri.startswith(("http://", "https://")):
        if sha256 is None:
            raise UserError(f"{uri}: a URL needs model.init_sha256")
        return Weights(uri, _read_file(download(uri, sha256), uri))
    path = Path(uri)
    if path.is_file():
        if sha256 and (found := file_sha256(path)) != sha256.lower():
            raise UserError(f"{uri} has sha256 {found}, not the expected {sha256}")
        return Weights(uri, _read_file(path, uri))
    if sha256:
        raise UserError(f"{uri}: model.init_sha256 is only for a file or a URL")
    if "://" not in uri and not uri.startswith("models:") and not path.is_dir():
        raise UserError(
            f"model.init {uri} does not exist; give a .pth or .safetensors file, an http(s) URL, "
            "models:/NAME@ALIAS, or the folder of a run or checkpoint"
        )
    loaded = load_detector(uri, tracking_uri)
    spec = loaded.spec
    return Weights(loaded.uri, loaded.state, spec.backbone, loaded.classes, spec.anchor_shapes)


def _read_file(path: Path, name: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tree: Any = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            tree = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise UserError(f"{name}: expected a .pth, .pt or .safetensors file")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).split(". ")[0].splitlines()[0]
        raise UserError(f"{name}: not a file of plain tensors: {reason}") from None
    return _tensors(tree, name)


def _tensors(tree: Any, name: str) -> dict[str, Tensor]:
    while isinstance(tree, Mapping):
        nested = [tree[key] for key in _WEIGHT_KEYS if isinstance(tree.get(key), Mapping)]
        if not nested:
            break
        tree = nested[0]
    found = tree if isinstance(tree, Mapping) else {}
    state = {str(key): value.detach() for key, value in found.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{name}: no tensors by name found")
    # DataParallel and DistributedDataParallel add this prefix to every name.
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if wrapped else key: v for key, v in state.items()}
