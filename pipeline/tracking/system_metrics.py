"""The load of a node under the names of MLflow's system metrics page, one group per node."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

_MEGABYTE = 1e6


class SystemSampler:
    """Returns the load since its previous call. Metrics that a platform lacks are left out."""

    def __init__(self) -> None:
        self._ticks = _cpu_ticks()
        self._prefix = f"system/{re.sub(r'[^A-Za-z0-9_.-]', '_', platform.node()) or 'node'}/"

    def __call__(self) -> dict[str, float]:
        """Return percentages and megabytes by metric name, ``system/NODE/...``."""
        return {f"{self._prefix}{name}": value for name, value in self.load().items()}

    def load(self) -> dict[str, float]:
        """Return percentages and megabytes by name, without the node."""
        return {**self._cpu(), **_memory(), **_disk(), **_gpus()}

    def _cpu(self) -> dict[str, float]:
        before, now = self._ticks, _cpu_ticks()
        self._ticks = now
        if before is None or now is None or now[1] <= before[1]:
            return {}
        share = (now[0] - before[0]) / (now[1] - before[1])
        return {"cpu_utilization_percentage": round(100 * share, 1)}


def _cpu_ticks() -> tuple[int, int] | None:
    """Return busy and total ticks since boot."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    ticks = [int(field) for field in first.split()[1:9]]  # user time includes guest time
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _memory() -> dict[str, float]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    used = kib["MemTotal"] - kib["MemAvailable"]
    return {
        "system_memory_usage_megabytes": round(used * 1024 / _MEGABYTE, 1),
        "system_memory_usage_percentage": round(100 * used / kib["MemTotal"], 1),
    }


def _disk() -> dict[str, float]:
    usage = shutil.disk_usage(Path.cwd())
    return {
        "disk_usage_percentage": round(100 * usage.used / usage.total, 1),
        "disk_usage_megabytes": round(usage.used / _MEGABYTE, 1),
    }


def _gpus() -> dict[str, float]:
    import torch

    metrics: dict[str, float] = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        free, total = torch.cuda.mem_get_info(index)
        prefix = f"gpu_{index}"
        metrics[f"{prefix}_memory_usage_megabytes"] = round((total - free) / _MEGABYTE, 1)
        metrics[f"{prefix}_memory_usage_percentage"] = round(100 * (total - free) / total, 1)
        metrics |= _utilization(prefix, index)
    return metrics


def _utilization(prefix: str, index: int) -> dict[str, float]:
    import torch

    try:
        return {f"{prefix}_utilization_percentage": float(torch.cuda.utilization(index))}
    except (ImportError, RuntimeError):  # nvidia-ml-py is not installed
        return {}
