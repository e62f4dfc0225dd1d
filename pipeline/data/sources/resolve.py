"""Find the files that the entries of annotations and lists mean, for every format.

Entries are written on other machines: absolute, with drives and backslashes, as URLs, in another
case or Unicode form, below folders that were renamed. Files are looked up among the listed names of
a source only, which keeps entries from leading out of it. Nothing is guessed: an entry that fits
several files is not resolved, and each way of repair is reported once.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.paths import (
    fold,
    has_encoded_slash,
    image_stem,
    is_url,
    path_parts,
)
from pipeline.progress import counted

_SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?[-_0-9]*$", re.I)
# The ways of repair, in the order in which they are reported.
WAYS = {
    "url": "read as URLs",
    "backslashes": "backslashes read as slashes",
    "percent": "percent-encoding decoded",
    "unicode": "another Unicode form of the same name",
    "case": "upper and lower case differ",
    "suffix": "found with another suffix",
    "start": "the folders at the start dropped",
    "below": "found in several folders below",
    "folder": "found by the end of the path, in another folder",
}
DOUBTFUL_WAYS = ("suffix", "folder")  # --strict rejects them; the others fit one file only


@dataclass
class Resolution:
    """The files that entries mean.

    ``found`` maps an entry to a listed name, ``missing`` to the reason why it has none, and
    ``ambiguous`` to the names if it fits several. ``problems`` has one item for each way of repair.
    """

    found: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def resolve(
    entries: Iterable[str],
    names: Collection[str],
    location: str,
    listed_in: str,
    bases: Sequence[str] = ("",),
    *,
    one_to_one: bool = True,
    whole: bool = False,
) -> Resolution:
    """Return the listed name that each entry means: as written, or else the longest common end.

    ``names`` are relative to ``location``, and ``listed_in`` is the file of the entries; both are
    for messages. An entry may be relative to any of the folders ``bases``. Case, Unicode form,
    percent-encoding, kind of slashes and, if nothing else fits, the suffix of an image may differ.
    With ``one_to_one``, different entries do not share a file: of those, only an entry that is
    written like the file is resolved. With ``whole``, the entry must be an end of the name, or the
    name an end of the entry.
    """
    found: dict[str, str] = {}
    pending: dict[str, _Entry] = {}
    for text in entries:
        name = next((name for name in _joined(text, bases) if name in names), None)
        if name is not None:
            found[text] = name
        elif text not in pending:
            pending[text] = _Entry(text)
    if not pending:
        return Resolution(found)
    index = _index(names, {entry.stem for entry in pending.values()})
    matches = {
        text: _matches(entry, index[entry.stem], whole) if entry.parts else []
        for text, entry in pending.items()
    }
    _prefer_common_folder(matches, bool(found))
    result = Resolution(found)
    for text, fitting in matches.items():
        if len(fitting) == 1:
            result.found[text] = fitting[0].name
        else:
            result.missing[text] = _missing_reason(fitting, location)
            if fitting:
                result.ambiguous[text] = [match.name for match in fitting]
    if one_to_one:
        _reject_shared(result, pending)
    result.problems = _problems(result, matches, listed_in)
    return result


class _Entry:
    """An entry in parts; ``folded`` is what remains if case, form and encoding do not count."""

    def __init__(self, text: str) -> None:
        self.text, self.parts = text, path_parts(text)
        self.folded = [fold(part) for part in self.parts]
        self.stem = image_stem(self.folded[-1]) if self.parts else ""


class _Match(NamedTuple):
    """A name that an entry may mean."""

    name: str
    dropped: tuple[str, ...]  # folders of the entry that the name lacks
    kept: tuple[str, ...]  # folders of the name that the entry lacks
    ways: frozenset[str]

    @property
    def rank(self) -> tuple[bool, int, bool, int]:
        """Return the order of preference, the best first."""
        differences = len(self.ways & {"percent", "unicode", "case"})
        return "suffix" in self.ways, len(self.dropped), bool(self.kept), differences


def _joined(text: str, bases: Sequence[str]) -> Iterator[str]:
    """Yield the plain relative paths that an entry may be as it is written."""
    for base in bases:
        name = f"{base}/{text}" if base not in ("", ".") else text
        if "./" in name or "//" in name:
            name = posixpath.normpath(name)
        yield name


def _index(names: Iterable[str], stems: set[str]) -> Mapping[str, list[str]]:
    """Return the names by the folded stem of their last part, for these stems only."""
    index = defaultdict(list)
    for name in names:
        stem = image_stem(fold(name.rpartition("/")[2]))
        if stem in stems:
            index[stem].append(name)
    return index


def _matches(entry: _Entry, names: Sequence[str], whole: bool) -> list[_Match]:
    """Return the best matches; more than one if the entry is ambiguous."""
    found = []
    for name in names:
        parts = name.split("/")
        count, most = 1, min(len(parts), len(entry.parts))
        while count < most and fold(parts[-count - 1]) == entry.folded[-count - 1]:
            count += 1
        dropped, kept = tuple(entry.parts[:-count]), tuple(parts[:-count])
        if dropped and kept and (whole or _in_other_split(dropped, kept)):
            continue
        ways = frozenset(_ways(entry, parts, dropped, kept))
        found.append(_Match(name, dropped, kept, ways))
    best = min((match.rank for match in found), default=None)
    return [match for match in found if match.rank == best]


def splits_in(parts: Iterable[str]) -> set[str]:
    """Return the splits, ``train``, ``val`` and ``test``, that folders are named after."""
    return {match[1].lower() for part in parts if (match := _SPLIT.match(part))}


def _in_other_split(dropped: Iterable[str], kept: Iterable[str]) -> bool:
    """Return whether an entry names the folder of a split, and the file is in that of another."""
    named, other = splits_in(dropped), splits_in(kept)
    return bool(named and other and not named & other)


def _ways(
    entry: _Entry, parts: Sequence[str], dropped: Sequence[str], kept: Sequence[str]
) -> Iterator[str]:
    if is_url(entry.text):
        yield "url"
    elif "\\" in entry.text:
        yield "backslashes"
    agreeing = len(parts) - len(kept)
    for written, part in zip(entry.parts[-agreeing:], parts[-agreeing:], strict=True):
        if written != part:
            yield from _differences(written, part)
    if has_encoded_slash(entry.text):
        yield "percent"
    if dropped:
        yield "folder" if kept else "start"
    elif kept:
        yield "below"
    elif entry.text.startswith(("/", "..")):
        yield "start"


def _differences(written: str, part: str) -> Iterator[str]:
    decoded = [unquote(text) for text in (written, part)]
    if decoded != [written, part]:
        yield "percent"
    first, second = (normalize("NFC", text) for text in decoded)
    if [first, second] != decoded:
        yield "unicode"
    if first == second:
        return
    if fold(written) != fold(part):
        yield "suffix"
    if image_stem(first) != image_stem(second) or fold(written) == fold(part):
        yield "case"


def _prefer_common_folder(matches: dict[str, list[_Match]], some_as_written: bool) -> None:
    """Reduce ambiguous matches to the one folder that has all entries of the same origin."""
    fitting: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
    entries: Counter[tuple[str, ...]] = Counter({(): some_as_written})
    for found in matches.values():
        for dropped in {match.dropped for match in found}:
            entries[dropped] += 1
            fitting[dropped].update({m.kept for m in found if m.dropped == dropped})
    for text, found in matches.items():
        if len(found) > 1:
            dropped = found[0].dropped  # the same for all of equal rank, but for the suffix
            common = [k for k, count in fitting[dropped].items() if count == entries[dropped]]
            chosen = [match for match in found if [match.kept] == common]
            matches[text] = chosen if len(chosen) == 1 else found


def _missing_reason(found: Sequence[_Match], location: str) -> str:
    if not found:
        return (
            f"not found in {location}, nor a file that ends like it below; "
            "give the folder that has it, or remove the entry"
        )
    some = " and ".join(match.name for match in found[:2])
    return (
        f"found {len(found)} times in {location}, as {some}; "
        "write the whole path, or give the folder that is meant"
    )


def _reject_shared(result: Resolution, pending: Mapping[str, _Entry]) -> None:
    """Move different entries that mean one file from ``found`` to ``missing``."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for text, name in result.found.items():
        by_name[name].append(text)
    for name, texts in by_name.items():
        if len(texts) == 1 or len({tuple(path_parts(text)) for text in texts}) == 1:
            continue
        for text in texts:
            if text in pending and pending[text].parts != name.split("/"):
                other = next(t for t in texts if t != text)
                del result.found[text]
                fits = "is listed itself" if other == name else f"also fits {other}"
                result.missing[text] = f"{name} fits, but {fits}; one of the two files is missing"


def _problems(
    result: Resolution, matches: Mapping[str, list[_Match]], listed_in: str
) -> list[Problem]:
    """Return one problem for each way in which entries were repaired."""
    by_way: dict[str, list[_Match]] = defaultdict(list)
    texts: dict[str, str] = {}
    for text, found in matches.items():
        if text in result.found:
            for way in found[0].ways:
                by_way[way].append(found[0])
                texts.setdefault(way, text)
    folders = {match.kept for match in by_way["below"]}
    if len(folders) == 1 and len(by_way["below"]) == len(result.found):
        del by_way["below"]  # all entries are relative to one folder
    return [
        Problem(
            file=listed_in,
            kind="repaired" if way in DOUBTFUL_WAYS else "note",
            reason=f"{counted(len(by_way[way]), 'path')}: {WAYS[way]}; "
            f"the first: {texts[way]} is {by_way[way][0].name}",
        )
        for way in WAYS
        if by_way[way]
    ]
