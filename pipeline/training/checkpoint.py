"""What a training needs to go on: tensors in ``state.pt``, everything readable in ``meta.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError

FORMAT_VERSION = 1


def save_checkpoint(folder: Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write a checkpoint into an empty folder; ``meta.json`` comes last and marks it complete."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "state.pt")
    text = json.dumps({"format_version": FORMAT_VERSION, **meta}, indent=1)
    draft = folder / "meta.json.part"
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, folder / "meta.json")


def load_meta(folder: Path) -> dict[str, Any]:
    """The readable half of a checkpoint.

    Raises UserError if the folder is no checkpoint or was written by a newer version.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is not a complete checkpoint: {error}") from None
    if meta["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{folder} has checkpoint format {meta['format_version']}, newer than the "
            f"{FORMAT_VERSION} that this version reads; update the software"
        )
    return dict(meta)


def load_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The tensors of a checkpoint; nothing is unpickled beyond plain containers and tensors."""
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    return state


def load_averaged_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, on the CPU: what is registered."""
    weights: dict[str, Tensor] = load_state(folder)["ema"]
    return weights
