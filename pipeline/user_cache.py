"""Where a machine keeps what can be had again: downloaded weights, and spools without a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache(kind: str) -> Path:
    """``$XDG_CACHE_HOME/guidance-train/KIND``; below ``~/.cache`` where that is not set.

    A container's user without a home gets it below the temporary folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        cache = tempfile.gettempdir()
    return Path(cache) / "guidance-train" / kind
