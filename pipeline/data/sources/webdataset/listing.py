"""List the samples of a WebDataset shard: which members belong together, and what they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.archives import is_archive, list_archive
from pipeline.data.sources.files import File
from pipeline.data.sources.paths import IMAGE_SUFFIXES
from pipeline.data.sources.webdataset.fetched_tar import FetchedMember, FetchedTar
from pipeline.errors import UserError
from pipeline.storage.remote import is_remote

# Members that hold labels, by the last part of their name; the first that fits is read.
LABELS = ("json", "xml", "txt")
_METADATA = re.compile(r"__[^/]*__(/|$)")  # skipped by webdataset, too


@dataclass(frozen=True)
class TarSample:
    """The members that share a key, by their suffix: names within the set, and files."""

    key: str
    members: dict[str, tuple[str, File]]

    def images(self) -> list[str]:
        """Return the suffixes of the images."""
        return [suffix for suffix in self.members if f".{suffix}".endswith(IMAGE_SUFFIXES)]

    def labels(self, kind: str) -> list[str]:
        """Return the suffixes of the members with labels of a kind of `LABELS`, or ``cls``."""
        return [suffix for suffix in self.members if suffix.rpartition(".")[2] == kind]


@dataclass(frozen=True)
class ListedShard:
    """The samples of a shard in order, and what is wrong with its members."""

    name: str
    samples: list[TarSample]
    problems: list[Problem]
    tar: FetchedTar | None = None  # of a remote shard


def list_shard(url: str, name: str, tar: FetchedTar | None = None) -> ListedShard:
    """List a shard at a path or URL, which is called ``name`` in messages.

    A remote one is fetched, unless its ``tar`` is given. Members are grouped as webdataset does, by
    their names up to the first dot, but need not be adjacent. Raises UserError if it is not a tar,
    and OutageError.
    """
    if is_remote(url):
        tar = tar or FetchedTar(url)
        files, skipped = _members(tar.path(), url)
        files = {
            member: FetchedMember(tar, file.start, file.size) for member, file in files.items()
        }
    else:
        files, skipped = _members(Path(url), url)
    problems = [
        Problem(file=f"{name}/{member}", kind="member skipped", reason=reason)
        for member, reason in skipped
    ]
    return ListedShard(name, list(_group(name, files, problems)), problems, tar)


def _members(path: Path, shown: str) -> tuple[dict[str, Any], Iterable[tuple[str, str]]]:
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if start[:4] == b"PK\x03\x04" or not is_archive(path):
            what = "is empty" if not start else "is a zip" if start[:2] == b"PK" else "is not a tar"
            raise UserError(f"{shown}: {what}; give tars")
        return list_archive(path)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(str(error).replace(str(path), shown)) from None


def _group(name: str, files: dict[str, File], problems: list[Problem]) -> Iterator[TarSample]:
    """Yield the samples in the order of their first members; report members without a sample."""
    from webdataset.tariterators import base_plus_ext, group_by_keys  # slow to import

    rows: dict[str, list[dict[str, Any]]] = {}  # by key
    order: list[str] = []
    for member, file in files.items():
        if _METADATA.match(member) or member.rpartition("/")[2].startswith("._"):
            continue
        key, _ = base_plus_ext(member)
        if key is None:
            reason = "its name is not KEY.SUFFIX"
            problems.append(Problem(file=f"{name}/{member}", kind="file unused", reason=reason))
            continue
        order.append(key)
        row = {"fname": member, "data": (f"{name}/{member}", file), "__url__": name}
        rows.setdefault(key, []).append(row)
    apart = sum(1 for _ in itertools.groupby(order)) - len(rows)
    if apart > 0:
        reason = (
            f"members of up to {apart} samples are not adjacent; webdataset itself would take them "
            "for separate samples"
        )
        problems.append(Problem(file=name, kind="note", reason=reason))

    def report(error: Exception) -> bool:
        reason = str(error.args[0]).partition(" dict_keys")[0]
        problems.append(Problem(file=name, kind="file unused", reason=reason))
        return True

    for sample in group_by_keys(itertools.chain(*rows.values()), handler=report):
        key = sample.pop("__key__")
        del sample["__url__"]
        yield TarSample(key, sample)
