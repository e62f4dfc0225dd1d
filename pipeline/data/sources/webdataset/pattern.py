"""Expand a pattern of shards, ``URI/{000..009}.tar``, to the tars that it names."""

from __future__ import annotations

import glob
import itertools
import math
import re
from pathlib import Path

from pipeline.data.shards.manifest import local_folder
from pipeline.errors import UserError
from pipeline.storage.remote import check_uri, is_remote

MAX_SHARDS = 1_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_WILDCARD = re.compile(r"[*?\[]")


def expand_shards(pattern: str) -> list[str]:
    """Return the paths or URLs of the shards in the order of the pattern, each once.

    Braces expand as in webdataset: ``{000..009}``, ``{a,b}``. A local pattern may also have
    wildcards, or be a folder. Local shards exist; remote ones are not looked for yet. Raises
    UserError.
    """
    found: list[str] = []
    missing: list[str] = []
    names = _expand_braces(pattern)
    for name in names:
        if is_remote(name):
            found.append(_check_url(name, pattern))
        elif paths := _local(name):
            found += paths
        else:
            missing.append(name)
    if missing:
        what = "a wildcard without a match" if _WILDCARD.search(missing[0]) else "not found"
        count = f"; {len(missing)} of {len(names)} names" if len(names) > 1 else ""
        raise UserError(f"--shards {pattern}: {missing[0]}: {what}{count}")
    for name in found:
        if name.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
            raise UserError(
                f"--shards {pattern}: {name}: a compressed tar can only be read from its start; "
                "decompress it first"
            )
    return list(dict.fromkeys(found))


def shard_names(shards: list[str]) -> list[str]:
    """Return a short name of each shard: its path from the folder that all have in common."""
    parts = [shard.split("/") for shard in shards]
    columns = zip(*(part[:-1] for part in parts), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return ["/".join(part[common:]) for part in parts]


def _expand_braces(pattern: str) -> list[str]:
    from webdataset.shardlists import expand_urls  # slow to import

    if pattern.startswith("pipe:"):
        raise UserError(
            f"--shards {pattern}: such an address would run a command; give a path or an http, "
            "https or s3 address"
        )
    if "::" in pattern or "${" in pattern:  # which expand_urls replaces, too
        raise UserError(f"--shards {pattern}: give one pattern, without :: and $")
    if math.prod(_size(group) for group in _GROUP.findall(pattern)) > MAX_SHARDS:
        raise UserError(f"--shards {pattern}: names more than {MAX_SHARDS} shards, the limit")
    try:
        names: list[str] = expand_urls(pattern)
    except ValueError:
        raise UserError(f"--shards {pattern}: the braces are unbalanced") from None
    return names


def _size(group: str) -> int:
    """Return about how many names a pair of braces gives."""
    if bounds := _RANGE.match(group):
        return abs(int(bounds[1]) - int(bounds[2])) + 1
    return group.count(",") + 1


def _check_url(name: str, pattern: str) -> str:
    if _WILDCARD.search(name):
        raise UserError(
            f"--shards {pattern}: wildcards are for local files; write {{000..009}} for numbers"
        )
    return check_uri(name)


def _local(name: str) -> list[str]:
    """Return the paths of the shards that a local name means."""
    path = local_folder(name)
    if path.is_file():
        return [str(path)]
    found = path.glob("*.tar") if path.is_dir() else map(Path, glob.glob(str(path)))
    return sorted(str(each) for each in found if each.is_file())
