"""Say what is probably wrong with a whole source, and reject what makes a meaningless set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pipeline.data.conversion.checks.counts import MAX_FRACTION, ObjectCounts
from pipeline.data.shards.problems import Problem, ProblemWriter
from pipeline.data.sources.record import BoxLayout
from pipeline.progress import counted

# Shares of all boxes, from which a source is suspicious.
SUSPICIOUS_SHARE = 0.1
MIN_PERCENT_BOXES = 5
MIN_SWAPPED = 3
OUTSIDE_SHARE, MIN_OUTSIDE = 0.25, 3
FITTING_SHARE = 0.95
MAX_LOST_SHARE = 0.1  # of the objects; more are named in a headline
MAX_LISTED_CLASSES = 10
_LAYOUTS: dict[BoxLayout, str] = {
    "corners": "corners x1, y1, x2, y2",
    "xywh": "the top left corner and the size",
    "cxcywh": "the centre and the size",
}
# The cause that a reader of numbered classes gives.
_UNKNOWN_NUMBER = re.compile(r"unknown class (\d+); known: 0 to (\d+)")


def fault_of_set(counts: ObjectCounts, problems: ProblemWriter) -> str | None:
    """Return why a set with these objects would be meaningless, if it would."""
    if counts.boxes and counts.near_corner == counts.boxes:
        which = "the only box ends" if counts.boxes == 1 else f"all {counts.boxes} boxes end"
        return (
            f"{which} within {MAX_FRACTION} pixels of the top left corner: it looks as if "
            + (
                "boxes are fractions of the image size"
                if counts.absolute
                else "fractions were divided by the image size again"
            )
            + "; multiply them by its width and height"
        )
    lost, excluded = problems.lost_objects, counts.excluded.total()
    if counts.kept or not lost + excluded:
        return None
    hints = "".join(f"; {problem.reason}" for problem in problems.first.get("suspicious", [])[:1])
    if not lost:
        return f"--classes leaves out all objects: {list_excluded(counts.excluded)}{hints}"
    others = f", and --classes leaves out {excluded}" if excluded else ""
    return f"{_none(lost)}{others}; {commonest_reason(problems)}{hints}"


def lost_headline(counts: ObjectCounts, problems: ProblemWriter) -> str | None:
    """Return a line about the lost objects, if they are more than a tenth of all."""
    lost = problems.lost_objects
    total = counts.kept + lost
    if lost <= MAX_LOST_SHARE * total:
        return None
    share = 100 * lost / total
    return f"warning: lost {lost} of {total} objects ({share:.0f} %); {commonest_reason(problems)}"


def commonest_reason(problems: ProblemWriter) -> str:
    """Return the cause by which most objects are lost, with its count and an example."""
    count, problem = problems.commonest_cause()
    return f"the commonest reason, {count} x: {problem.reason} ({problem.file})"


def list_excluded(excluded: Mapping[str, int]) -> str:
    """Return the classes that were left out, with their counts, the commonest first."""
    ranked = sorted(excluded.items(), key=lambda item: -item[1])
    more = len(ranked) - MAX_LISTED_CLASSES
    shown = ", ".join(f"{name} {count}" for name, count in ranked[:MAX_LISTED_CLASSES])
    return f"{shown} and {more} more" if more > 0 else shown


def _none(count: int) -> str:
    return "the only object is unusable" if count == 1 else f"none of {count} objects is usable"


def whole_source_problems(
    name: str,
    classes: Sequence[str],
    boxes_per_class: Mapping[str, int],
    counts: ObjectCounts,
    causes: Mapping[str, int],
) -> Iterator[Problem]:
    """Yield what is suspicious about the objects of a source taken together.

    ``causes`` counts the lost objects by their cause.
    """
    for reason in (
        *_suspicious_boxes(counts),
        *_suspicious_names(boxes_per_class, counts.excluded),
        *_suspicious_numbers(classes, {**boxes_per_class, **counts.excluded}, causes),
    ):
        yield Problem(file=name, kind="suspicious", reason=reason)
    if counts.replaced_areas:
        reason = (
            f"{counted(counts.replaced_areas, 'area')} not positive or larger than the image; "
            "replaced by the area of the box"
        )
        yield Problem(file=name, kind="note", reason=reason)


def _suspicious_boxes(counts: ObjectCounts) -> Iterator[str]:
    if not counts.boxes:
        return
    if SUSPICIOUS_SHARE * counts.boxes < counts.near_corner < counts.boxes:
        question = (
            "are they fractions of the image size?"
            if counts.absolute
            else "were they divided by the image size twice?"
        )
        yield (
            f"{counts.near_corner} of {counts.boxes} boxes end within {MAX_FRACTION} pixels of the "
            f"top left corner; {question}"
        )
    if counts.zero_corners:
        yield _describe_zero_corners(counts)
    if counts.swapped >= max(MIN_SWAPPED, SUSPICIOUS_SHARE * counts.boxes):
        fitting = [
            f"{_LAYOUTS[name]} ({counts.fit_as[name]} fit)"
            for name in ("xywh", "cxcywh")
            if counts.fit_as[name] >= FITTING_SHARE * counts.boxes
        ]
        if fitting:
            yield (
                f"the corners of {counts.swapped} of {counts.boxes} boxes are swapped, and nearly "
                f"all boxes fit their image if their numbers are read as {' or as '.join(fitting)};"
                " if that is meant, convert them to corners"
            )
    if counts.boxes == counts.near_percent >= MIN_PERCENT_BOXES:
        yield (
            f"all {counts.boxes} boxes end within 100 pixels of the top left corner of larger "
            "images; are they percentages of the image size?"
        )
    if counts.crowd and counts.crowd == counts.kept:
        yield (
            f"all {counts.crowd} kept boxes are crowd regions, which training ignores; check "
            "iscrowd"
        )
    if counts.outside <= SUSPICIOUS_SHARE * counts.boxes:
        return
    reach = f"{counts.outside} of {counts.boxes} boxes reach outside their image"
    ranked = sorted(_LAYOUTS, key=lambda name: -counts.fit_as[name])
    fitting = [
        f"{counts.fit_as[name]} fit it if their numbers are read as {_LAYOUTS[name]}"
        for name in ranked
        if counts.fit_as[name] >= FITTING_SHARE * counts.boxes
    ]
    if fitting:
        yield f"{reach}, and {', and '.join(fitting)}; convert them to the layout of the format"
    elif counts.outside >= max(MIN_OUTSIDE, OUTSIDE_SHARE * counts.boxes):
        yield f"{reach}; was it resized or turned after it was annotated?"


def _describe_zero_corners(counts: ObjectCounts) -> str:
    """Return what corners at 0 mean, given how many boxes begin at 1 or end at the last pixel."""
    begin = f"{counts.zero_corners} of {counts.boxes} boxes begin before 1, the first pixel"
    at_one = counts.at_start - counts.zero_corners
    if at_one > counts.zero_corners:
        return (
            f"{begin}, and are cut, but {at_one} of {counts.boxes} begin at 1: these corners look "
            "like mistakes; correct them"
        )
    if counts.at_end:
        return (
            f"{begin}, and {counts.at_end} of {counts.boxes} end at the full width or height, "
            "where 0-based corners end before it: if the ends are exclusive, add 1 to all xmin and "
            "ymin; otherwise correct those at 0, which are cut"
        )
    return (
        f"the corners look 0-based: {begin}, and none ends at the full width or height; these are "
        "cut, and all others may be shifted by a pixel; --corners-from 0 reads them as 0-based"
    )


def _suspicious_names(
    boxes_per_class: Mapping[str, int], excluded: Mapping[str, int]
) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in {**boxes_per_class, **excluded}:
        groups["".join(name.split()).casefold()].append(name)
    for group in groups.values():
        if len(group) > 1:
            # A chosen class if others are left out, else the usual spelling.
            chosen = [name for name in group if name not in excluded] or group
            usual = max(chosen, key=lambda name: (boxes_per_class.get(name, 0), -len(name)))
            options = " ".join(
                f"--rename {_quoted(f'{name}={usual}')}" for name in group if name != usual
            )
            yield f"{', '.join(map(repr, group))} look like one class; {options} merges them"


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w=.-]+", text) else f"'{text}'"


def _suspicious_numbers(
    classes: Sequence[str], boxes_per_class: Mapping[str, int], causes: Mapping[str, int]
) -> Iterator[str]:
    found = [match for cause in causes if (match := _UNKNOWN_NUMBER.fullmatch(cause))]
    if len(found) != 1 or not classes:
        return
    number, last = map(int, found[0].groups())
    if number == last + 1 and last + 1 == len(classes) and not boxes_per_class.get(classes[0]):
        yield (
            f"class {number} is unknown and class 0 is never used: the labels look numbered from "
            "1, and then every box has the class after its own; subtract 1 from all class numbers"
        )
