"""Say why the labels of a source have no class names."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from pipeline.data.shards.problems import HARMLESS_KINDS
from pipeline.data.sources.record import SourceImage
from pipeline.progress import counted

MAX_PROBED_IMAGES = 1000


def reason_without_classes(images: Iterable[SourceImage]) -> str:
    """Return a message about a source without class names, with the first fault of its labels.

    Up to `MAX_PROBED_IMAGES` are read. Raises UserError and OSError.
    """
    probed = list(islice(images, MAX_PROBED_IMAGES))
    faults = [
        problem
        for image in probed
        for problem in image.read_record().problems
        if problem.kind not in HARMLESS_KINDS
    ]
    if not faults:
        return "no class names found: no image has objects; give the names with --classes"
    return (
        f"no class names found: {counted(len(faults), 'fault')} in the labels of "
        f"{counted(len(probed), 'image')}, the first: {faults[0]}"
    )
