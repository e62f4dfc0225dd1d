"""Save and restore the states of all random generators of a process.

States are tensors and plain numbers. Training does not draw from these generators at present:
augmentation draws are keyed by sample. Layers that do, such as dropout, would resume exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.distributed.world import World


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's generators, including the GPU's."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(states: Sequence[dict[str, Any]], world: World, seed: int, step: int) -> None:
    """Restore this rank's state; with another number of ranks, start new streams.

    New streams depend on seed, step and rank, so they differ between ranks and between resumes.
    """
    if len(states) != world.size:
        start = np.random.SeedSequence([seed, step, world.rank]).generate_state(3)
        random.seed(int(start[0]))
        np.random.seed(start[1])
        torch.manual_seed(int(start[2]))
        return
    state = states[world.rank]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), world.device)
