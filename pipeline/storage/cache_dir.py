"""The cache folder of a machine: shards, weights, and spools of runs without a local folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache(kind: str) -> Path:
    """Return ``$XDG_CACHE_HOME/guidance-train/KIND``; in ``~/.cache`` if that is not set.

    A user without a writable home, as in many containers, gets a folder in the temporary folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the specification says to ignore relative paths
        cache = Path(os.path.expanduser("~/.cache"))
        if not _is_writable(cache):
            cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return cache / "guidance-train" / kind


def _is_writable(folder: Path) -> bool:
    if not folder.is_absolute():  # the home is unknown
        return False
    # Unlike Path.exists, os.path.exists does not raise where a parent must not be searched.
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return os.access(existing, os.W_OK | os.X_OK)
