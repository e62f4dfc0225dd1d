"""The rank of this process among all ranks, and the few collectives that training needs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed.gpus import choose_gpus
from pipeline.errors import OutageError, TrainingFailed, UserError

T = TypeVar("T")

STORE_TIMEOUT_SECONDS = 30.0  # of a request of `World.key_value_store`


@dataclass(frozen=True)
class World:
    """Rank, number of ranks and compute device of this process.

    Its methods are collectives: all ranks must call them, in the same order.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the one that logs and saves."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """Return the name of the device for users, such as ``CPU`` or ``NVIDIA H100``."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type.upper()

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def minimum(self, value: Tensor) -> Tensor:
        """Take the elementwise minimum of a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def begin_sum(self, value: Tensor) -> Callable[[], Tensor]:
        """Start to sum a tensor over all ranks, in place.

        Returns a function that waits for the sum and returns it.
        """
        work = dist.all_reduce(value, async_op=True) if self.size > 1 else None

        def finish() -> Tensor:
            if work is not None:
                work.wait()
            return value

        return finish

    def key_value_store(self) -> Any:
        """Return a separate connection to the store of the process group, for another thread.

        Not a collective. There is no store if this is the only rank.
        """
        shared: Any = dist.distributed_c10d._get_default_store()
        store = shared.clone()
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_SECONDS))
        return store

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0; None on the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every rank with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def on_main(self, call: Callable[[], T]) -> T:
        """Call a function on rank 0 only, and return its result on every rank.

        If it raises there, every rank raises: UserError and OutageError as they are, anything else
        as TrainingFailed on the other ranks.
        """
        value: Any = None
        if self.is_main:
            try:
                value = call()
            except Exception as error:
                self.broadcast((_kind(error), str(error)))
                raise
        failure, value = self.broadcast((None, value) if self.is_main else None)
        if failure is not None:
            raise failure(value)
        result: T = value
        return result

    def on_each(self, call: Callable[[], T]) -> T:
        """Call a function on every rank, and return each rank's own result.

        If it raises on one, every rank raises one of the errors that `on_main` raises. The message
        names the rank and its machine unless all ranks report the same.
        """
        if self.size == 1:
            return call()
        failure: Exception | None = None
        try:
            result = call()
        except Exception as error:
            failure = error
        own = (_kind(failure), str(failure)) if failure else (None, "")
        reports = self.gather((*own, platform.node()))
        kind, text = self.broadcast(_first_failure(reports or []))
        if failure is not None and _kind(failure) is TrainingFailed:
            raise failure
        if kind is not None:
            raise kind(text)
        return result


def _kind(error: Exception) -> type[Exception]:
    """Return the type as which an error is raised on the other ranks."""
    known = (kind for kind in (UserError, OutageError) if isinstance(error, kind))
    return next(known, TrainingFailed)


def _first_failure(
    reports: Sequence[tuple[type[Exception] | None, str, str]],
) -> tuple[type[Exception] | None, str]:
    for rank, (kind, text, machine) in enumerate(reports):
        if kind is not None:
            same = all(report[:2] == (kind, text) for report in reports)
            where = "" if same else f"rank {rank} on {machine}: "
            return kind, f"{where}{text}"
    return None, ""


def world_from_environment(
    gpu: bool | Literal["auto"], timeout: float = 1800.0
) -> tuple[World, bool]:
    """Return the world that torchrun describes in the environment, else a single process.

    Each process gets a GPU if ``gpu`` is true, or if it is ``auto`` and this machine has enough.
    A collective fails after ``timeout`` seconds. Also returns whether this call started the
    process group. Raises UserError if ``gpu`` is true and torch finds no GPU.
    """
    gpu = _use_gpus(gpu)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    starts_group = size > 1 and not dist.is_initialized()
    if starts_group:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout))
    return World(rank, size, device), starts_group


def _use_gpus(setting: bool | Literal["auto"]) -> bool:
    if setting is True and not torch.cuda.is_available():
        raise UserError(
            "ray.gpu is true, but torch finds no GPU; set it to auto, or install a driver and a "
            "torch that is built with CUDA"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    choice = choose_gpus(setting, torch.cuda.device_count(), processes)
    if choice.note and os.environ.get("RANK", "0") == "0":
        print(choice.note, file=sys.stderr, flush=True)
    return choice.used


def mean_over_ranks(values: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Return the averages of named scalars over all ranks; uses one collective."""
    stacked = world.sum(torch.stack([value.detach().double() for value in values.values()]))
    return dict(zip(values, (stacked / world.size).tolist(), strict=True))
