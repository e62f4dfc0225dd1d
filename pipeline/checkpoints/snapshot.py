"""A copy of a training's state in CPU memory, taken in milliseconds and written later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BufferKey = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Snapshot:
    """Copies trees of tensors into memory that is allocated once and reused.

    Fresh memory costs more than the copy itself, and page-locked memory lets a GPU copy at full
    speed. The last copy is valid until the next `take`.
    """

    def __init__(self) -> None:
        self._memory: dict[BufferKey, list[Tensor]] = {}

    def reserve(self, tree: Any) -> None:
        """Allocate the memory for trees of such tensors."""
        self.take(tree)

    def take(self, tree: Any) -> Any:
        """Return the tree with every tensor copied to the CPU."""
        used: dict[BufferKey, int] = {}

        def copy(value: Tensor) -> Tensor:
            key = (value.shape, value.stride(), value.dtype)
            index = used.get(key, 0)
            used[key] = index + 1
            memory = self._memory.setdefault(key, [])
            if index == len(memory):
                pinned = value.device.type == "cuda"
                memory.append(torch.empty_like(value, device="cpu", pin_memory=pinned))
            return memory[index].copy_(value, non_blocking=True)

        with torch.no_grad():
            copied = map_tensors(tree, copy)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return the same dicts, lists and tuples with ``change`` applied to every tensor."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree
