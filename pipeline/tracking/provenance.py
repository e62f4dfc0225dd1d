"""What a result came from: revision, uncommitted changes, packages, machine. Never secrets.

Environment variables are not recorded, because that is where credentials live.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MAX_DIFF_BYTES = 1_000_000


class GitState(NamedTuple):
    """The checkout this code runs from; ``revision`` is None where there is none."""

    revision: str | None
    branch: str | None
    diff: str

    @property
    def dirty(self) -> bool:
        """Whether tracked files differ from the revision."""
        return bool(self.diff)


def git_state(root: Path = ROOT) -> GitState:
    """Revision, branch and ``git diff HEAD`` (cut at 1 MB) of the checkout that holds this code.

    A packed upload or an image has no repository; it may name its revision in ``$GIT_REVISION``.
    """
    # A repository around an installed copy does not describe the copy: the code must be tracked.
    if _git(root, "ls-files", "--error-unmatch", "--", "pipeline/__init__.py") is None:
        return GitState(os.environ.get("GIT_REVISION"), None, "")
    revision = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    branch = (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-color") or ""
    if len(diff) > MAX_DIFF_BYTES:
        diff = f"{diff[:MAX_DIFF_BYTES]}\n# cut: the whole diff has {len(diff)} characters\n"
    return GitState(revision, branch, diff)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def packages() -> str:
    """Installed distributions, one ``name==version`` a line, as ``pip freeze`` would list them."""
    found = {
        f"{name}=={dist.version}"
        for dist in importlib.metadata.distributions()
        if (name := dist.metadata["Name"])
    }
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def machine() -> dict[str, Any]:
    """Python, platform, CPU, memory and GPUs of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
