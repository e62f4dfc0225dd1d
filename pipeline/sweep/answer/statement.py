"""What a sweep shows in words: which differences are distinguishable from noise, and which not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.comparison.documents import Pair
from pipeline.progress import counted
from pipeline.sweep.documents import DEFAULT, Arm, Statement, Trial


def compared(
    metric: str,
    mode: Literal["max", "min"],
    images: int,
    arms: Sequence[Arm],
    pairs: Sequence[Pair],
    spread: float | None,
    left_out: Sequence[str] = (),
) -> Statement:
    """Return the statement of a confirmation, given its arms with the best first.

    The winner is the best point that is distinguishable from the default, else the default; of the
    points alone if the default could not be trained. ``left_out`` are sentences about trainings
    that failed.
    """
    names = [arm.name for arm in arms]
    against = {pair.candidate: pair for pair in pairs if pair.reference == DEFAULT}
    better = [name for name in names if name in against and _is_better(against[name], mode)]
    if DEFAULT not in names:
        winner = names[0]
    else:
        winner = better[0] if better else DEFAULT
    return Statement(
        metric=metric,
        mode=mode,
        images=images,
        arms=list(arms),
        pairs=list(pairs),
        spread=spread,
        winner=winner,
        confirmed=True,
        sentences=[
            *_conclusion(metric, winner, arms, against),
            *(_against_default(against[name]) for name in names if name in against),
            *(_between(pair) for pair in pairs if pair.reference != DEFAULT),
            *left_out,
            _basis(metric, images, arms, spread),
        ],
    )


def one_seed(
    metric: str, mode: Literal["max", "min"], best: Trial, trials: int, why: str
) -> Statement:
    """Return the statement of a search alone; ``why`` says why nothing was confirmed."""
    state = "" if best.status == "finished" else f" ({best.status} after {best.epochs:g} epochs)"
    return Statement(
        metric=metric,
        mode=mode,
        winner=best.name,
        confirmed=False,
        sentences=[
            f"One seed proves nothing: {best.name}{state} has the best {metric}, "
            f"{_number(best.best)}, of {counted(trials, 'trial')}, but the best of several trials "
            "is partly luck.",
            why,
        ],
    )


def _is_better(pair: Pair, mode: str) -> bool:
    return pair.low > 0 if mode == "max" else pair.high < 0


def _conclusion(
    metric: str, winner: str, arms: Sequence[Arm], against: dict[str, Pair]
) -> list[str]:
    scores = {arm.name: arm.score for arm in arms}
    if DEFAULT not in scores:
        return [
            f"best.yaml is {winner}, the best of the confirmed points; there is nothing to compare "
            "it with, since the default could not be trained."
        ]
    default = f"{metric} {_number(scores[DEFAULT].value)}"
    if winner == DEFAULT:
        return [
            "best.yaml is the default: no point scores better than the recipe without the sweep "
            f"({default}) beyond noise."
        ]
    return [
        f"best.yaml is {winner}: {metric} {_number(scores[winner].value)}, better than the default "
        f"({_number(scores[DEFAULT].value)}) beyond noise."
    ]


def _against_default(pair: Pair) -> str:
    return f"{pair.candidate} against the default: {_difference(pair)}."


def _between(pair: Pair) -> str:
    return f"{pair.candidate} against {pair.reference}: {_difference(pair)}."


def _difference(pair: Pair) -> str:
    verdict = "distinguishable" if pair.distinguishable else "not distinguishable"
    return (
        f"{pair.gain:+.4f}, 95% interval {pair.low:+.4f} to {pair.high:+.4f}, {verdict} from noise"
    )


def _basis(metric: str, images: int, arms: Sequence[Arm], spread: float | None) -> str:
    seeds = arms[0].seeds
    which = f"{counted(len(seeds), 'further seed')} ({', '.join(map(str, seeds))})"
    text = (
        f"Each was trained on {which} and scored on {counted(images, 'image')}; the search and its "
        "seed do not count. "
    )
    if spread is None:
        return text + (
            "With one seed each, the intervals are about the choice of images only; raise "
            "sweep.confirm.seeds to learn what seeds change."
        )
    freedom = sum(len(arm.seeds) - 1 for arm in arms)
    return text + (
        f"Over seeds, {metric} has a standard deviation of {spread:.4f}, estimated with "
        f"{counted(freedom, 'degree')} of freedom; intervals cover images and seeds."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
