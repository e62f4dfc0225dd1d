"""The section ``ray``: workers, and where their files are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Section


class RayConfig(Section):
    """Workers, and where their files are stored."""

    enabled: bool = Field(
        True,
        description="train in Ray workers; false: in this process, or in the processes of torchrun",
    )
    address: str | None = Field(
        None,
        description="Ray cluster to join; unset: $RAY_ADDRESS, else a local cluster is started",
    )
    workers: int | tuple[int, int] = Field(
        1,
        description="number of training workers (ranks), or [min, max]: as many as the cluster has "
        "resources for",
    )
    resize_seconds: float = Field(
        60.0, ge=1.0, description="seconds between checks whether more workers can be added"
    )
    collective_timeout: int = Field(
        1800,
        ge=1,
        description="seconds that a worker waits for the others before the training fails",
    )
    cpus_per_worker: float = Field(1.0, gt=0.0, description="CPUs reserved for each worker")
    gpu: bool | Literal["auto"] = Field(
        "auto",
        description="give each worker one GPU; auto: if the cluster, or without Ray each machine, "
        "has one for every worker when the training starts",
    )
    threads_per_worker: int = Field(
        0, ge=0, description="compute threads per worker; 0: as many as its CPUs, at least one"
    )
    storage: str | None = Field(
        None,
        description="absolute folder or URI for checkpoints that all nodes can access (without "
        "Ray: rank 0); unset: ./runs",
    )
    lease_seconds: float = Field(
        60.0,
        ge=1.0,
        description="seconds without a heartbeat of the driver after which another machine may "
        "take over its run",
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="restarts after worker failures; lost nodes, outages and mistakes do not "
        "count; -1: no limit",
    )
    max_outages: int = Field(
        20,
        ge=-1,
        description="restarts, after growing pauses of up to 5 minutes, when data, storage or the "
        "run store does not respond; -1: no limit",
    )
    wait_for_nodes: float = Field(
        0.0,
        ge=0.0,
        description="minutes to wait for nodes that the cluster does not have yet, such as those "
        "of an autoscaler; 0: refuse to start without them",
    )

    def storage_uri(self) -> str:
        """Return the configured storage, by default ``./runs`` as an absolute path."""
        return self.storage or str(Path("runs").absolute())

    @property
    def min_workers(self) -> int:
        """Return the number of workers that training needs at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Return the number of workers that training uses at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> int | tuple[int, int]:
        # The command line passes a single number as a list.
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(numbers) <= 2 or not all(str(n).isdecimal() for n in numbers):
            raise ValueError(f"{value!r} is neither a number of workers nor [min, max]")
        low, high = int(numbers[0]), int(numbers[-1])
        if not 1 <= low <= high:
            given = low if len(numbers) == 1 else numbers
            raise ValueError(f"{given} is not valid; give 1 or more, and [min, max] in that order")
        return low if len(numbers) == 1 else (low, high)

    @field_validator("gpu", mode="before")
    @classmethod
    def _boolean_or_auto(cls, value: Any) -> bool | str:
        # The command line and the environment pass text.
        known: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
        if str(value).lower() not in known:
            raise ValueError(f"{value!r} is not true, false or auto")
        return known[str(value).lower()]

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise ValueError(f"{value!r} is a relative path; give an absolute path or a URI")
        return value
