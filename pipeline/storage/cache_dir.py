"""Where a machine keeps what can be had again: shards, weights, and spools without a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache(kind: str) -> Path:
    """``$XDG_CACHE_HOME/guidance-train/KIND``; below ``~/.cache`` where that is not set.

    A user without a home to write in, as in many containers, gets a folder among the temporary
    ones.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # such a path is to be ignored
        cache = Path(os.path.expanduser("~/.cache"))
        if not _can_be_written(cache):
            cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return cache / "guidance-train" / kind


def _can_be_written(folder: Path) -> bool:
    if not folder.is_absolute():  # nobody knows a home
        return False
    # Unlike Path.exists, this raises nothing where a folder above may not be looked into.
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return os.access(there, os.W_OK | os.X_OK)
