"""Read the state of a checkpoint on rank 0 for all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoints.snapshot import map_tensors
from pipeline.distributed.world import World

CHUNK_BYTES = 1 << 26  # sent at once: the memory that it takes besides the tensors themselves

T = TypeVar("T")
State = dict[str, Any]


def read_on_main(
    read: Callable[[], tuple[T, State | None]], world: World
) -> tuple[T, State | None]:
    """Call ``read`` on rank 0 only, and return its result and the state on every rank.

    Every rank calls it; errors are those of `World.on_main`.
    """
    state: State | None = None

    def result() -> T:
        nonlocal state
        found, state = read()
        return found

    return world.on_main(result), broadcast_state(state, world)


def broadcast_state(state: State | None, world: World) -> State | None:
    """Return rank 0's tree of dicts, lists and tuples on every rank; every rank calls it.

    What the other ranks pass is ignored. They get tensors on the CPU, with the same bytes in the
    same memory layout.
    """
    if world.size == 1:
        return state
    tensors: list[Tensor] = []

    def describe(value: Tensor) -> Tensor:
        form = torch.empty_like(value, device="meta")  # without gaps between the elements
        tensors.append(value if form.stride() == value.stride() else value.clone())
        return form

    def allocate(form: Tensor) -> Tensor:
        tensors.append(torch.empty_like(form, device="cpu"))
        return tensors[-1]

    form = world.broadcast(map_tensors(state, describe) if world.is_main else None)
    if not world.is_main:
        state = map_tensors(form, allocate)
    for parts in _chunks(tensors):
        sizes = [len(part) for part in parts]
        if world.is_main:
            dist.broadcast(torch.cat(parts).to(world.device), src=0)
            continue
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=world.device)
        dist.broadcast(received, src=0)
        for part, content in zip(parts, received.split(sizes), strict=True):
            part.copy_(content)
    return state


def _chunks(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the bytes (N,) of all tensors, in the order of their memory, in chunks."""
    chunk: list[Tensor] = []
    space = CHUNK_BYTES
    for tensor in tensors:
        left = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        while len(left):
            chunk.append(left[:space])
            left, space = left[space:], space - len(chunk[-1])
            if space == 0:
                yield chunk
                chunk, space = [], CHUNK_BYTES
    if chunk:
        yield chunk
