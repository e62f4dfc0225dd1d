"""Findings about samples, classes and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.data.shards.manifest import Manifest
from pipeline.progress import counted
from pipeline.reports.doctor.finding import Finding, listed, percent
from pipeline.reports.doctor.statistics import MAX_EXAMPLES, Statistics

FEW_OBJECTS = 50  # of a class
FEW_SAMPLES = 100
IMBALANCE = 50  # objects of the most frequent class per object of the rarest
_LOST = ("member skipped", "image skipped", "box dropped", "file unused")


def sample_findings(found: Statistics) -> Iterator[Finding]:
    """Yield findings about unreadable samples, and images without objects, few or elongated."""
    total = found.samples + found.unreadable
    if found.unreadable:
        # As a training, which stops above these limits.
        severe = found.unreadable > max(10, total / 100)
        yield Finding(
            "error" if severe else "warning",
            "unreadable_samples",
            f"samples that cannot be read: {found.unreadable} of {total}",
            "run python -m jobs.shards verify on the set, then copy or convert it again",
            found.unreadable_examples,
        )
    if not found.objects:
        yield Finding(
            "error",
            "no_objects",
            "the set has no objects",
            "check the labels of the source: python -m jobs.shards describe lists its problems",
        )
        return
    if found.empty:
        yield Finding(
            "warning" if found.empty > found.samples / 2 else "note",
            "images_without_objects",
            f"images without objects: {found.empty} of {found.samples} "
            f"({percent(found.empty, found.samples)})",
            "they train the background, which is right if nothing of the classes is visible; if "
            "labels are missing, add them or leave the images out",
        )
    if found.samples < FEW_SAMPLES:
        yield Finding(
            "note",
            "few_images",
            f"the set has only {counted(found.samples, 'image')}",
            "start from existing weights (model.init) and use strong augmentation",
        )
    if found.fit == "stretch" and found.elongated > found.samples / 10:
        yield Finding(
            "note",
            "elongated_images",
            f"{percent(found.elongated, found.samples)} of the images are more than twice as "
            "long as wide, or the reverse, and are squeezed to a square",
            "data.fit letterbox keeps their aspect ratio",
        )


def conversion_findings(manifest: Manifest) -> Iterator[Finding]:
    """Yield findings about the problems that the conversion of the set counted."""
    counts: Mapping[str, int] = manifest.problem_counts  # type: ignore[assignment]
    where = "python -m jobs.shards describe lists them"
    lost = {kind: counts[kind] for kind in _LOST if counts.get(kind)}
    if lost:
        dropped = lost.get("box dropped", 0), manifest.boxes
        skipped = lost.get("image skipped", 0), manifest.samples
        severe = any(gone > (gone + kept) / 10 for gone, kept in (dropped, skipped))
        yield Finding(
            "error" if severe else "warning",
            "lost_in_conversion",
            "the conversion lost data: " + ", ".join(f"{n} x {kind}" for kind, n in lost.items()),
            f"correct the source and convert it again; {where}",
        )
    if suspicious := counts.get("suspicious"):
        yield Finding(
            "warning",
            "suspicious_source",
            f"entries that the conversion found suspicious: {suspicious}",
            f"they are probably mistakes of the source; {where}",
        )
    if leaks := counts.get("leak"):
        yield Finding(
            "error" if leaks > manifest.samples / 100 else "warning",
            "leak",
            f"images that are also in another split, or look like one there: {leaks} of "
            f"{manifest.samples}",
            f"remove them from one of the two, or scores will be too good; {where}",
        )
    if duplicates := counts.get("near duplicate"):
        yield Finding(
            "warning" if duplicates > manifest.samples / 20 else "note",
            "near_duplicates",
            f"images that look like another one of the set: {duplicates} of {manifest.samples}",
            "keep them in one split (jobs.prepare --split-by does), and remove plain copies; "
            + where,
        )


def split_findings(found: Statistics, others: Mapping[str, Manifest]) -> Iterator[Finding]:
    """Yield findings about other splits, whose manifests are given by URI."""
    manifest = found.manifest
    for uri, other in others.items():
        if other.content_hash == manifest.content_hash:
            yield Finding(
                "error",
                "same_content",
                f"{uri} has the same content as this set",
                "scores on the training data say nothing; prepare another split",
            )
            continue
        if other.classes != manifest.classes:
            yield Finding(
                "error",
                "other_classes",
                f"{uri} has other classes, or in another order: {listed(other.classes)}",
                "prepare it with --classes-from and this set",
            )
            continue
        here, there = manifest.boxes_per_class, other.boxes_per_class
        unlearned = [name for name in manifest.classes if there.get(name) and not here.get(name)]
        if unlearned:
            objects = sum(there[name] for name in unlearned)
            yield Finding(
                "error" if objects > other.boxes / 100 else "warning",
                "classes_only_in_other_split",
                f"classes of {uri} without objects in this set: {len(unlearned)}, with "
                f"{percent(objects, other.boxes)} of its objects: {listed(unlearned)}",
                "they cannot be learned from this set; divide the data again (jobs.prepare "
                "--split-by), or leave the classes out (--classes)",
                classes=unlearned,
            )
        unmeasured = [name for name in manifest.classes if here.get(name) and not there.get(name)]
        if unmeasured:
            yield Finding(
                "warning",
                "classes_absent_from_other_split",
                f"classes of this set without objects in {uri}: {len(unmeasured)}: "
                f"{listed(unmeasured)}",
                "they are not part of its scores; a larger split would have them",
                classes=unmeasured,
            )


def common_findings(
    uri: str, samples: int, common: tuple[int, Sequence[tuple[str, str]]]
) -> Iterator[Finding]:
    """Yield a finding if another split of so many ``samples`` has images in common with the set.

    ``common`` is the result of `Fingerprints.common`.
    """
    count, files = common
    if count:
        examples = ", ".join(f"{here} and {there}" for here, there in files[:MAX_EXAMPLES])
        yield Finding(
            "error" if count > samples / 100 else "warning",
            "same_annotations",
            f"images of {uri} with the size and the boxes of an image of this set: {count} of "
            f"{samples}",
            "they are probably the same images: remove them from one of the two, or scores will be "
            "too good",
            [f"for example {examples}"],
        )


def class_findings(found: Statistics) -> Iterator[Finding]:
    """Yield findings about classes with no or few objects, and their imbalance."""
    if not found.objects:
        return
    objects = dict(zip(found.manifest.classes, found.objects_per_class.tolist(), strict=True))
    absent = [name for name, count in objects.items() if not count]
    if absent:
        yield Finding(
            "warning",
            "classes_without_objects",
            f"classes without objects: {len(absent)} of {len(objects)}: {listed(absent)}",
            "they cannot be learned; add images of them, or leave them out (jobs.prepare "
            "--classes)",
            classes=absent,
        )
    present = {name: count for name, count in objects.items() if count}
    rarest_first = sorted(present, key=lambda name: (present[name], name))
    few = [name for name in rarest_first if present[name] < FEW_OBJECTS]
    if few:
        counts = listed([f"{name} ({present[name]})" for name in few])
        yield Finding(
            "warning",
            "few_objects",
            f"classes with fewer than {FEW_OBJECTS} objects: {len(few)} of {len(objects)}: "
            f"{counts}",
            "such classes are learned badly and scored unreliably; add images of them, merge "
            "classes, or start from weights that were trained on similar data (model.init)",
            classes=few,
        )
    rarest, commonest = rarest_first[0], rarest_first[-1]
    if present[commonest] > IMBALANCE * present[rarest]:
        yield Finding(
            "note",
            "imbalance",
            f"{commonest} has {present[commonest] // present[rarest]} times as many objects as "
            f"{rarest} ({present[commonest]} and {present[rarest]})",
            "look at the AP of each class in the evaluation, not only at the mean",
            classes=[commonest, rarest],
        )
