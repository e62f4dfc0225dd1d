"""What a result came from: revision, uncommitted changes, packages, machine. Never secrets.

Environment variables are not recorded, because that is where credentials live; the two that
name a revision are.
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
# The folder in which Ray unpacks what is submitted with a job.
RAY_UPLOADS = "working_dir_files"


class GitState(NamedTuple):
    """What the running code is; ``revision`` and ``dirty`` are None where nobody knows."""

    revision: str | None
    branch: str | None
    diff: str
    dirty: bool | None
    """Whether tracked files differ from the revision."""


def git_state(root: Path = ROOT) -> GitState:
    """Revision, branch and ``git diff HEAD`` (cut at 1 MB) of the checkout that holds this code.

    A packed upload or an image has no repository and is what its environment says; see
    ``_named_state``.
    """
    # A repository around an installed copy does not describe the copy: the code must be tracked.
    if _git(root, "ls-files", "--error-unmatch", "--", "pipeline/__init__.py") is None:
        return _named_state(root)
    revision = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    branch = (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-color")
    dirty = bool(diff) if revision and diff is not None else None
    diff = diff or ""
    if len(diff) > MAX_DIFF_BYTES:
        diff = f"{diff[:MAX_DIFF_BYTES]}\n# cut: the whole diff has {len(diff)} characters\n"
    return GitState(revision, branch, diff, dirty)


def _named_state(root: Path) -> GitState:
    """``$GIT_REVISION``, given with an upload, or ``$IMAGE_REVISION``, built into the image.

    Both as ``git describe --always --dirty`` prints them. An image does not speak for code that was
    uploaded to it.
    """
    named = os.environ.get("GIT_REVISION")
    if not named and RAY_UPLOADS not in root.parts:
        named = os.environ.get("IMAGE_REVISION")
    if not named:
        return GitState(None, None, "", None)
    return GitState(named.removesuffix("-dirty"), None, "", named.endswith("-dirty"))


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
