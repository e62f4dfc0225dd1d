"""The origin of a result: revision, uncommitted changes, packages and machine. Never secrets.

Environment variables are not recorded, because they hold credentials. The only exceptions are the
two that name a revision.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MAX_DIFF_BYTES = 1_000_000
# The directory in which Ray unpacks the working directory of a submitted job.
RAY_UPLOAD_FOLDER = "working_dir_files"
_GIT_TIMEOUT_SECONDS = 20


class GitState(NamedTuple):
    """The revision of the running code; ``revision`` and ``dirty`` are None if unknown."""

    revision: str | None
    branch: str | None
    diff: str
    dirty: bool | None
    """Whether tracked files differ from the revision."""


def git_state(root: Path = ROOT) -> GitState:
    """Return revision, branch and ``git diff HEAD`` (cut at 1 MB) of the checkout of this code.

    A packed upload or an image has no repository; its revision is read from the environment.
    """
    # A repository around an installed copy does not describe the copy: the code must be tracked.
    if _git(root, "ls-files", "--error-unmatch", "--", "pipeline/__init__.py") is None:
        return _state_from_environment(root)
    revision = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    branch = (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-color")
    dirty = bool(diff) if revision and diff is not None else None
    diff = diff or ""
    if len(diff) > MAX_DIFF_BYTES:
        diff = f"{diff[:MAX_DIFF_BYTES]}\n# cut: the whole diff has {len(diff)} characters\n"
    return GitState(revision, branch, diff, dirty)


def _state_from_environment(root: Path) -> GitState:
    """Read ``$GIT_REVISION``, set with an upload, or ``$IMAGE_REVISION``, set in the image.

    Both have the format of ``git describe --always --dirty``. The revision of an image is not that
    of code that was uploaded to it.
    """
    described = os.environ.get("GIT_REVISION")
    if not described and RAY_UPLOAD_FOLDER not in root.parts:
        described = os.environ.get("IMAGE_REVISION")
    if not described:
        return GitState(None, None, "", None)
    return GitState(described.removesuffix("-dirty"), None, "", described.endswith("-dirty"))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def installed_packages() -> str:
    """Return the installed distributions, one ``name==version`` per line."""
    found = {
        f"{name}=={dist.version}"
        for dist in importlib.metadata.distributions()
        if (name := dist.metadata["Name"])
    }
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def machine_info() -> dict[str, str | int | list[str] | None]:
    """Return Python, platform, CPU, memory and GPUs of this machine."""
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
