"""Find the class names and splits that a data set states: in a YAML, obj.data or classes.txt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.shards.problems import Problem
from pipeline.data.sources.class_names import parse_name_list, read_names, repeated_names
from pipeline.data.sources.files import FileError, Files
from pipeline.data.sources.resolve import resolve
from pipeline.data.sources.values import decode_text
from pipeline.errors import UserError
from pipeline.safe_yaml import YamlError, load_yaml

MAX_DESCRIPTION_BYTES = 2**20
YAML_SUFFIXES = (".yaml", ".yml")
# Names of the splits in descriptions and of their folders.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NAME_LISTS = ("obj.names", "classes.txt", "_darknet.labels", "classes.names", "labels.names")
_NULL = ("", "~", "null", "Null", "NULL")


@dataclass
class Description:
    """Class names by number, and the entries of each split: folders, or lists of images.

    ``file`` is where they come from, "" if nowhere. Entries are relative to ``path``, which is
    relative to the folder of ``file``. ``keypoints`` is None if that is not stated.
    """

    names: dict[int, str]
    file: str = ""
    splits: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""
    keypoints: bool | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Return the folder of the file, "" for the top."""
        folder = PurePosixPath(self.file).parent.as_posix()
        return "" if folder == "." else folder

    @property
    def describes_folder(self) -> bool:
        """Return whether the file is that of one data set, which is its folder."""
        return self.file.lower().endswith((*YAML_SUFFIXES, ".data"))


def canonical_split(name: str) -> str:
    """Return ``val`` for ``valid`` and so on; other names stay."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), name)


def find_description(
    files: Files, root: Path, only: str | None, classes: Sequence[str] | None
) -> Description:
    """Return the description of the one data set in the files.

    ``only`` is the name of the YAML or obj.data to use. ``classes`` are the names if there is none.
    Raises UserError.
    """
    found = _find_yaml(files, root, only) or _find_darknet(files, root, only)
    found = found or _find_name_list(files, root)
    if found is None and not classes:
        raise UserError(
            f"--root {root}: no YAML with names, obj.names or classes.txt found; give the class "
            "names, in the order of their numbers, with --classes"
        )
    found = found or Description(dict(enumerate(classes or ())))
    found.problems += repeated_names(found.names, found.file)
    return found


def _find_yaml(files: Files, root: Path, only: str | None) -> Description | None:
    """Return the least deeply nested YAML with class names. Others may be damaged."""
    names = [n for n in files if n.lower().endswith(YAML_SUFFIXES) and only in (None, n)]
    by_depth: dict[int, list[str]] = {}
    for name in names:
        by_depth.setdefault(name.count("/"), []).append(name)
    faults: list[str] = []
    for depth in sorted(by_depth):
        trees = {n: t for n in by_depth[depth] if (t := _read_yaml(files, n, faults)) is not None}
        if len(trees) > 1:
            first, second = sorted(trees)[:2]
            raise UserError(
                f"--root {root}: several data sets: {first} and {second}; "
                "give one of them, or its folder, as --root"
            )
        if trees:
            ((name, tree),) = trees.items()
            found = _from_yaml(files, root, name, tree)
            found.problems += [
                Problem(file=fault.partition(" ")[0], kind="note", reason=f"ignored: {fault}")
                for fault in faults
            ]
            return found
    if faults:
        raise UserError(f"--root {root}: {faults[0]}")
    return None


def _read_yaml(files: Files, name: str, faults: list[str]) -> dict[str, Any] | None:
    """Return the content if it has class names, and add to the faults if it cannot be read."""
    try:
        data = files.read_bytes(name, MAX_DESCRIPTION_BYTES)
        if b"names" not in data.replace(b"\0", b""):  # also in UTF-16
            return None
        keys = ("names", "path", *(key for keys in SPLITS.values() for key in keys))
        tree = load_yaml(data, keys)
    except (FileError, YamlError) as error:
        faults.append(f"{name} cannot be read: {error}")
        return None
    return tree if isinstance(tree, dict) and "names" in tree else None


def _splits(tree: dict[str, Any]) -> dict[str, list[str]]:
    """Return the entries of each split that is not empty."""
    found: dict[str, list[str]] = {}
    for split, keys in SPLITS.items():
        for key in keys:
            value = tree.get(key)
            entries = [str(one) for one in (value if isinstance(value, list) else [value])]
            if value is not None and (some := [one for one in entries if one not in _NULL]):
                found.setdefault(split, []).extend(some)
    return found


def _from_yaml(files: Files, root: Path, name: str, tree: dict[str, Any]) -> Description:
    names, path = tree["names"], str(tree.get("path") or "")
    if isinstance(names, str) and names.lower().endswith((".names", ".txt")):
        found = resolve([names], files, str(root), name)
        if names in found.missing:
            raise UserError(f"{name}: names is {names}: {found.missing[names]}")
        listed = _parse_list(files, found.found[names])
    else:
        listed = read_names(names, name)
    if isinstance(tree.get("nc"), int) and tree["nc"] != len(listed):
        raise UserError(f"{name}: nc is {tree['nc']}, but names has {len(listed)}; correct one")
    stated = tree["kpt_shape"] is not None if "kpt_shape" in tree else None
    path = "" if path in _NULL else path
    return Description(listed, name, _splits(tree), path, stated)


def _find_darknet(files: Files, root: Path, only: str | None) -> Description | None:
    """Return the description in an obj.data: lines of ``key = value``."""
    for name in sorted((n for n in files if n.lower().endswith(".data")), key=_depth):
        if only not in (None, name):
            continue
        try:
            text = decode_text(files.read_bytes(name, MAX_DESCRIPTION_BYTES), "replace")
        except FileError:
            continue
        pairs = (line.partition("=") for line in text.splitlines())
        tree = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
        if "names" not in tree:
            continue
        found = resolve([tree["names"]], files, str(root), name)
        if tree["names"] in found.missing:
            raise UserError(f"{name}: names = {tree['names']}: {found.missing[tree['names']]}")
        names = _parse_list(files, found.found[tree["names"]])
        if tree.get("classes", str(len(names))) != str(len(names)):
            raise UserError(
                f"{name}: classes is {tree['classes']}, but {tree['names']} has {len(names)} names"
            )
        return Description(names, name, _splits(tree))
    return None


def _find_name_list(files: Files, root: Path) -> Description | None:
    """Return the names in classes.txt or similar; several such files must agree."""
    found = sorted((n for n in files if n.rpartition("/")[2].lower() in NAME_LISTS), key=_depth)
    if not found:
        return None
    names = _parse_list(files, found[0])
    for other in found[1:]:
        if _parse_list(files, other) != names:
            raise UserError(
                f"--root {root}: {found[0]} and {other} have different class names; "
                "give the folder of one data set as --root"
            )
    return Description(names, found[0])


def _parse_list(files: Files, name: str) -> dict[int, str]:
    try:
        return parse_name_list(files.read_bytes(name, MAX_DESCRIPTION_BYTES), name)
    except FileError as error:
        raise UserError(f"{name}: {error}") from None


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name
