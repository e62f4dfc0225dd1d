"""Tensors by name, and the files that contain them."""

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

# The keys under which checkpoints of this and other projects have the weights, best first.
_WEIGHT_KEYS = ("ema", "state_dict", "model_state_dict", "model")


class Weights(NamedTuple):
    """Tensors by name; the rest is known if they are a whole detector of this project."""

    source: str
    state: dict[str, Tensor]
    backbone: str | None = None
    classes: list[str] | None = None
    anchors: AnchorShapes | None = None


def read_file(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file onto the CPU.

    Unpickles tensors and containers only. Raises UserError, which begins with ``name``.
    """
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
