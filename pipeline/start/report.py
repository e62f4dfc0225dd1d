"""The proposal as a few lines for a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.data.shards.manifest import Manifest
from pipeline.progress import counted
from pipeline.reports.doctor.examine import Diagnosis
from pipeline.reports.doctor.finding import SEVERITIES, Finding, listed
from pipeline.start.facts import Machine
from pipeline.start.find import KINDS, Data
from pipeline.start.measure import Duration
from pipeline.start.rules import Choice
from pipeline.start.splits import Division

WIDTH = 100
MAX_WARNINGS = 4
_ROLES = {
    "train": "trained on",
    "val": "selects the checkpoint",
    "test": "scored once, at the end; never trained on",
}


def data_lines(
    data: Data, division: Division, manifests: Mapping[str, Manifest], notes: Sequence[str]
) -> list[str]:
    """Return what was found: the format, the splits and their use, the classes."""
    kind = KINDS[data.kind]
    if data.also:
        kind += f" ({data.also} of the same images, too)"
    lines = [f"{data.name}: {kind} in {data.path}"]
    for use, manifest in manifests.items():
        counts = f"{counted(manifest.samples, 'image')}, {counted(manifest.boxes, 'object')}"
        lines.append(f"  {use:<6}{counts:<28}{_ROLES[use]}")
    classes = manifests["train"].classes
    names = textwrap.shorten(listed(classes), WIDTH - 16, placeholder=" ...")
    lines.append(f"  {counted(len(classes), 'class').replace('classs', 'classes')}: {names}")
    lines += [_wrapped(f"  {note}") for note in [*data.notes, *division.notes, *notes]]
    return lines


def doctor_lines(diagnosis: Diagnosis, sets: Mapping[str, str], more: str) -> list[str]:
    """Return all errors with remedies, and the first warnings; ``more`` is the command for all.

    Anchors are left out if the recipe has some that fit.
    """
    found = _left(diagnosis)
    counts = Counter(one.severity for one in found)
    shown = ", ".join(counted(counts[name], name) for name in SEVERITIES if counts[name])
    lines = [f"doctor: {shown or 'nothing found'}"]
    for one in [one for one in found if one.severity == "error"]:
        lines.append(_wrapped(f"  error: {_named(one.text, sets)}", 4))
        lines.append(_wrapped(f"    -> {_named(one.remedy, sets)}", 7))
    for one in [one for one in found if one.severity == "warning"][:MAX_WARNINGS]:
        text = f"warning: {_named(one.text, sets)}"
        lines.append(f"  {textwrap.shorten(text, WIDTH - 2, placeholder=' ...')}")
    if found:
        lines.append(f"  all, with remedies: {more}")
    return lines


def _left(diagnosis: Diagnosis) -> list[Finding]:
    """Return the findings that the recipe does not remedy: it has anchors that fit."""
    return [
        one for one in diagnosis.findings if diagnosis.fitted is None or one.check != "anchor_fit"
    ]


def _named(text: str, sets: Mapping[str, str]) -> str:
    """Return a text of the doctor with the uses of the sets in place of their URIs."""
    text = text.replace("this set", "train")
    for use, uri in sets.items():
        text = text.replace(uri, use)
    return text


def next_lines(diagnosis: Diagnosis, again: str) -> list[str]:
    """Return the command that trains, after the advice to correct errors first."""
    errors = sum(one.severity == "error" for one in _left(diagnosis))
    if not errors:
        return [f"next: {again}"]
    return [
        f"next: correct the {counted(errors, 'error')} of the doctor, and run the same command",
        f"or train as it is: {again}",
    ]


def recipe_lines(path: str, choices: Sequence[Choice], own: bool) -> list[str]:
    """Return the choices with their reasons, or that the user's own recipe is used."""
    if own:
        return [f"recipe: {path} was changed by you and is used as it is"]
    width = max(len(choice.what) for choice in choices) + 2
    lines = [f"recipe: {path}"]
    for choice in choices:
        first = f"  {choice.what:<{width}}"
        lines.append(_wrapped(f"{first}{choice.text}: {choice.why}", len(first)))
    return lines


def time_line(duration: Duration, machine: Machine) -> str:
    """Return how long the training will take."""
    busy = duration.load > machine.cpus / 2
    line = (
        f"time: {'at most' if busy else 'about'} {rounded(duration.total)} on {machine} "
        f"({duration.step:.2f} s a step, measured)"
    )
    if busy:
        line += f"; less when other programs leave the CPUs free (load {duration.load:.0f})"
    return _wrapped(line)


def cluster_line(address: str) -> str:
    """Return that the recipe is for this machine, although a cluster would train it."""
    return _wrapped(
        f"cluster: {address} would train, but the recipe is for this machine, and all nodes have "
        'to read its shard sets; see "On a cluster" in docs/start.md'
    )


def rounded(seconds: float) -> str:
    """Return a duration with as many digits as an estimate has."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _wrapped(text: str, indent: int = 2) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
