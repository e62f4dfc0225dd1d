"""The seeds of a training's random generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from pipeline.data.keyed_rng import bit_generator


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, identically on every rank: initial weights are equal."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch by step and rank, so that draws such as dropout's survive a resume."""
    torch.manual_seed(int(bit_generator("network", seed, step, rank).random_raw()))
