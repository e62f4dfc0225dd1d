"""Find the images of the splits of a YOLO data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.shards.problems import Problem, ProblemKind
from pipeline.data.sources.files import FileError, Files, relative_name
from pipeline.data.sources.paths import (
    IMAGE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    list_entries,
    path_parts,
)
from pipeline.data.sources.resolve import Resolution, resolve, splits_in
from pipeline.data.sources.yolo.description import SPLITS, Description, canonical_split
from pipeline.errors import UserError
from pipeline.progress import counted

MAX_LIST_BYTES = 2**30
# A name, a blank, and a number or the name of the label file.
_COLUMN = re.compile(r"(.*\S)\s+(?:-?\d+|\S+\.(?:txt|xml))", re.I)
_WILDCARD = re.compile(r"[/\\][^/\\]*\*[^/\\]*$")  # the end of images/*.jpg


@dataclass
class SplitImages:
    """Images in order, each once; ``missing`` gives the reason why a listed one has no file."""

    names: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def list_images(files: Files) -> list[str]:
    """Return the names of all images, also of those in formats that are not read."""
    suffixes = (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)
    return [name for name in files if name.lower().endswith(suffixes)]


def split_images(
    files: Files, images: Sequence[str], about: Description, split: str | None, root: Path
) -> SplitImages:
    """Return the images of a split, or of all splits if it is None. Raises UserError."""
    found = SplitImages()
    if about.splits:
        _add_stated(found, files, images, about, split, root)
    elif split is None:
        found.names = list(images)
    else:
        _add_folder_or_list(found, files, images, split, root)
    count = len(found.names)
    found.names = list(dict.fromkeys(found.names))
    if count > len(found.names):
        repeated = counted(count - len(found.names), "image")
        reason = f"{repeated} listed more than once; each is taken once"
        found.problems.append(_problem(about.file or str(root), "note", reason))
    if not found.names:
        raise UserError(f"--root {root}: no images found" + (f" of split {split}" if split else ""))
    if len(found.missing) == len(found.names):
        first = found.names[0]
        raise UserError(
            f"--root {root}: none of the {len(found.names)} listed images exists; the first: "
            f"{first}: {found.missing[first]}"
        )
    return found


def _problem(file: str, kind: ProblemKind, reason: str) -> Problem:
    return Problem(file=file, kind=kind, reason=reason)


def _add_stated(
    found: SplitImages,
    files: Files,
    images: Sequence[str],
    about: Description,
    split: str | None,
    root: Path,
) -> None:
    """Add the images of the entries that the description gives."""
    wanted = list(about.splits) if split is None else [canonical_split(split)]
    if wanted[0] not in about.splits:
        raise UserError(
            f"--split {split}: not in the YAML of {root}; available: {', '.join(about.splits)}"
            if about.file.lower().endswith((".yaml", ".yml"))
            else f"--split {split}: not in {about.file}; available: {', '.join(about.splits)}"
        )
    entries = {entry: one for one in wanted for entry in about.splits[one]}
    places = _Places(files, images, about)
    by_entry = places.find(entries, found.problems)
    absent = []
    for entry, of_split in entries.items():
        place = by_entry.get(entry)
        if place is None:
            absent.append(
                f"{entry} of split {of_split} is not a folder with images or a list in {root}, "
                "as written or by its end"
            )
        elif place in places.lists:
            _add_list(found, files, images, place, about.path)
        else:
            start = "" if place == "." else f"{place}/"
            found.names += [name for name in images if name.startswith(start)]
    if absent and not found.names and not found.missing:
        raise UserError(
            f"--root {root}: no images found"
            + (f" of split {split}" if split else "")
            + f": {about.file}: {absent[0]}; correct the entry, or give the folder that has it as "
            "--root"
        )
    found.problems += [_problem(about.file, "file unused", reason) for reason in absent]
    if split is None:
        found.problems += _unused(images, found.names, about)


class _Places:
    """The folders and lists that an entry of a split may be."""

    def __init__(self, files: Files, images: Sequence[str], about: Description) -> None:
        self.lists = {name for name in files if name.lower().endswith(".txt")}
        parents = {name.rpartition("/")[0] for name in images}
        self.folders = {"."}
        for parent in parents:
            while parent and parent not in self.folders:
                self.folders.add(parent)
                parent = parent.rpartition("/")[0]
        self._about, self._location = about, files.location

    def find(self, entries: Iterable[str], problems: list[Problem]) -> dict[str, str]:
        """Return the folder, "." for the top, or the list that each entry is, if it is one."""
        texts = {entry: _WILDCARD.sub("", entry).rstrip("/\\") or "." for entry in entries}
        found: dict[str, str] = {}
        for are_lists, places in ((True, self.lists), (False, self.folders)):
            left = {}
            for entry, text in texts.items():
                if text.lower().endswith(".txt") != are_lists:
                    continue
                place = next((place for place in self._usual(text) if place in places), None)
                if place is None:
                    left[entry] = text
                else:
                    found[entry] = place
            # One call for all, which reports each way of repair once.
            found |= self._resolve(left, places, problems)
        return found

    def _resolve(
        self, texts: Mapping[str, str], places: Collection[str], problems: list[Problem]
    ) -> dict[str, str]:
        def resolve_all(wanted: Iterable[str]) -> Resolution:
            file = self._about.file
            return resolve(wanted, places, self._location, file, one_to_one=False, whole=True)

        result = resolve_all(texts.values())
        # An entry of a split is not the folder of all: valid/images is not images.
        wrong = {
            text
            for text, place in result.found.items()
            if (named := splits_in(path_parts(text))) and not named & splits_in(place.split("/"))
        }
        if wrong:
            result = resolve_all(text for text in texts.values() if text not in wrong)
        problems += result.problems
        return {entry: result.found[text] for entry, text in texts.items() if text in result.found}

    def _usual(self, text: str) -> Iterator[str]:
        """Yield where an entry may be; exporters disagree about what it is relative to."""
        about = self._about
        inside = re.sub(r"^(\.\.?[/\\])+", "", text)
        for base in (about.path, about.path.rstrip("/").rpartition("/")[2], ""):
            for folder in ("", about.folder):
                joined = PurePosixPath(folder, base.lstrip("/") or ".", text).as_posix()
                yield _without_parents(joined)
        yield relative_name(inside) or ""


def _without_parents(path: str) -> str:
    """Return a path with each ``x/..`` removed; unusable names stay as they are."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts) or "."


def _add_list(
    found: SplitImages, files: Files, images: Sequence[str], name: str, path: str
) -> None:
    """Add the images that a list names. They may be relative to it, to its folder or to a path."""
    try:
        entries = list_entries(files.read_bytes(name, MAX_LIST_BYTES))
    except FileError as error:
        raise UserError(f"{name}: {error}") from None
    folder = name.rpartition("/")[0]
    known = dict.fromkeys(images)
    entries = [entry for entry in entries if entry in known or not entry.startswith("#")]
    bases = ("", folder, path.rstrip("/"))

    def resolve_all(wanted: Iterable[str]) -> Resolution:
        # A label file belongs to its image, whatever the image is called in the list.
        result = resolve(wanted, known, files.location, name, bases, one_to_one=False)
        found.problems.extend(result.problems)
        return result

    result = resolve_all(entries)
    # Names may have blanks; only what is not a file is split into columns.
    columns = {entry: match[1] for entry in result.missing if (match := _COLUMN.fullmatch(entry))}
    of_columns = resolve_all(columns.values()) if columns else Resolution({})
    resolved = {entry: place for entry, place in result.found.items() if entry not in columns}
    resolved |= of_columns.found
    names = [columns.get(entry, entry) for entry in entries]
    found.names += [resolved.get(entry, entry) for entry in names]
    found.missing |= {entry: why for entry, why in result.missing.items() if entry not in columns}
    found.missing |= of_columns.missing


def _add_folder_or_list(
    found: SplitImages, files: Files, images: Sequence[str], split: str, root: Path
) -> None:
    """Add the images in folders called like the split, or those of a list called like it.

    If no folder and no list is called like any split, ``split`` is only a name: add all images.
    """
    canonical = canonical_split(split)
    wanted = set(SPLITS.get(canonical, (split,))) | {split.lower()}
    found.names = [
        n for n in images if not wanted.isdisjoint(map(str.lower, PurePosixPath(n).parts[:-1]))
    ]
    if found.names:
        return
    lists = [n for n in files if n.rpartition("/")[2].lower() in {f"{w}.txt" for w in wanted}]
    if not lists:
        if not named_splits(files, images):
            found.names = list(images)
            return
        folders = " or ".join(sorted(wanted))
        raise UserError(
            f"--split {split}: no YAML with splits and no folder {folders} in {root}; "
            "use --split-by to split all images"
        )
    _add_list(found, files, images, min(lists, key=lambda n: (n.count("/"), n)), "")


def named_splits(files: Files, images: Sequence[str]) -> set[str]:
    """Return the splits, ``train``, ``val`` and ``test``, that folders or lists are named after."""
    folders = {name.rpartition("/")[0] for name in images}
    parts = {part for folder in folders for part in folder.split("/")}
    texts = {PurePosixPath(name).stem for name in files if name.lower().endswith(".txt")}
    lists = texts - {PurePosixPath(name).stem for name in images}  # without label files
    return splits_in(parts) | splits_in(lists)


def _unused(images: Sequence[str], used: Sequence[str], about: Description) -> Iterator[Problem]:
    """Yield a problem for each folder with images that are in no split."""
    taken = set(used)
    counts = Counter(name.rpartition("/")[0] for name in images if name not in taken)
    for folder, count in sorted(counts.items()):
        reason = f"{counted(count, 'image')} in no split of {about.file}"
        yield _problem(folder or ".", "file unused", reason)
