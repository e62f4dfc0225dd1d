"""Which splits of a data set are trained on, select the checkpoint, and are scored at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import UserError

WHOLE = "all"  # the split of a set that is not divided
FLATTERS = "the final figures are of val, which selects the checkpoint, so flatter a little"
_USE = re.compile(r"(trainval|train|val|test)(ing|id|idation)?")


class Division(NamedTuple):
    """The splits for each use; without ``val``, it is made of ``train``. ``notes`` say why."""

    train: str
    val: str | None
    test: str | None
    notes: list[str]


def use_of(name: str) -> str:
    """Return ``train``, ``val``, ``test`` or ``trainval`` for the name of a split, else `WHOLE`.

    The name may be a path, such as ``annotations/instances_val2017.json``; its end counts first.
    """
    for part in reversed(PurePosixPath(name).parts):
        text = re.sub(r"train[^a-z]+val(?![a-z])", "trainval", part.lower())
        for word in re.split(r"[^a-z]+", text):
            if match := _USE.fullmatch(word):
                return match[1]
    return WHOLE


def by_split(names: Sequence[str], root: Path) -> dict[str, str]:
    """Return the names by their use. Raises UserError if two names have the same one."""
    found: dict[str, str] = {}
    for name in names:
        use = use_of(name)
        if use in found:
            kind = "data" if use == WHOLE else use
            raise UserError(
                f"{root}: two sets of {kind}: {found[use]} and {name}; give the folder of one data "
                "set, or move one away"
            )
        found[use] = name
    return found or {WHOLE: ""}


def divide(splits: Mapping[str, str], path: Path) -> Division:
    """Return what each split is used for, given their names; test images are never trained on.

    Raises UserError if there is nothing to train on.
    """
    notes = []
    train = next((one for one in ("train", "trainval", WHOLE) if one in splits), None)
    if train is None:
        raise UserError(
            f"{path} has only {' and '.join(sorted(splits))}; no training images were found, and "
            "these are never trained on"
        )
    val = "val" if "val" in splits else None
    if val is None:
        source = "" if train == WHOLE else f" from {train}"
        notes.append(f"validation images are taken{source}; near duplicates stay together")
    test = "test" if "test" in splits else None
    if test is None:
        notes.append(f"no test part: {FLATTERS}")
    for use in splits.keys() - {train, val, test}:
        if use == WHOLE:
            notes.append(
                f"{splits[use] or path} is not used: its name says neither train nor val nor test"
            )
        elif not (use == "trainval" and val):  # train and val are its parts
            notes.append(f"{splits[use]} is not used beside {splits[train]}")
    return Division(train, val, test, notes)
