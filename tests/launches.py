"""Counts of the operators that torch dispatches: on a GPU each is a kernel launch or a view."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountLaunches(TorchDispatchMode):
    """Counts operators by name inside the block, such as ``aten.amax``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """Call the operator and count it."""
        self.counts[str(func.overloadpacket)] += 1
        result: torch.Tensor = func(*args, **(kwargs or {}))
        return result
