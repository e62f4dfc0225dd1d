"""What a comparison shows in words: which arms differ beyond noise, and which do not."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.comparison.documents import ArmResult, Pair
from pipeline.progress import counted


def sentences(
    metric: str,
    images: int,
    table: Sequence[ArmResult],
    pairs: Sequence[Pair],
    spread: float | None,
    folds: int,
) -> list[str]:
    """Return the statement: the differences beyond noise, the others, and what they rest on."""
    found = [pair for pair in pairs if pair.distinguishable]
    scored = [arm for arm in table if arm.scores]
    name = metric.upper()
    lines = []
    if len(scored) < 2:
        return [*_failures(table), "Fewer than two arms have a score: there is nothing to compare."]
    lines += [
        f"{pair.candidate} is better than {pair.reference}: {name} {pair.gain:+.4f}, 95% interval "
        f"{pair.low:+.4f} to {pair.high:+.4f}."
        for pair in found
    ]
    rest = len(pairs) - len(found)
    if not found:
        lines.append(
            f"No difference between the {len(scored)} arms is distinguishable from noise. More "
            "seeds or more images could show smaller ones."
        )
    elif rest:
        lines.append(f"The other {counted(rest, 'difference')} cannot be distinguished from noise.")
    return [*lines, *_failures(table), _basis(name, images, scored, pairs, spread, folds)]


def _failures(table: Sequence[ArmResult]) -> list[str]:
    return [
        f"{arm.name} lacks {counted(len(arm.failed), 'training')} that failed: "
        f"{', '.join(arm.failed)}."
        for arm in table
        if arm.failed
    ]


def _basis(
    name: str,
    images: int,
    scored: Sequence[ArmResult],
    pairs: Sequence[Pair],
    spread: float | None,
    folds: int,
) -> str:
    seeds = sorted({len(arm.seeds) for arm in scored})
    count = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    where = f", each predicted by one of {folds} trainings on the others" if folds else ""
    text = f"Each arm has {count} and is scored on {counted(images, 'image')}{where}. "
    if spread is None:
        return text + (
            "With one seed each, the intervals cover the choice of images only: another seed could "
            "reverse any difference."
        )
    freedom = sum(len(arm.seeds) - 1 for arm in scored)
    together = f"; the {len(pairs)} differences hold together" if len(pairs) > 1 else ""
    estimate = f"{spread:.4f} ({counted(freedom, 'degree')} of freedom)"
    return text + (
        f"Over seeds, {name} has a standard deviation of {estimate}. Intervals cover images and "
        f"seeds{together}."
    )
