"""Figures of the arms of a comparison, from the match tables of its trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median, stdev

from pipeline.comparison.arms import Arm
from pipeline.comparison.cells import Cell
from pipeline.comparison.documents import ArmResult, Pair
from pipeline.config import Protocol, deciding_metric
from pipeline.evaluation.protocol import score
from pipeline.metrics import MatchTable
from pipeline.metrics.bootstrap import SeedResampled, seed_bootstrap
from pipeline.metrics.summary import affordable_resamples
from pipeline.metrics.table import IOU_THRESHOLDS


@dataclass(frozen=True)
class Scored:
    """A training that was scored."""

    matches: MatchTable
    seconds_per_step: float | None
    health: Mapping[str, float]


def ious_of(metric: str) -> tuple[int, ...]:
    """Return the indices of the IoU thresholds that the metric averages."""
    return tuple(range(len(IOU_THRESHOLDS))) if metric == "ap" else (0,)


def make_table(
    arms: Sequence[Arm],
    cells: Sequence[Cell],
    scored: Mapping[str, Scored],
    classes: Sequence[str],
    protocol: Protocol,
) -> tuple[list[ArmResult], list[Pair], float | None]:
    """Return a row per arm, the best first, all pairs, and the spread over seeds if it is known.

    A seed of which a training is missing in ``scored`` does not count.
    """
    metric = deciding_metric(protocol).removeprefix("val/")
    pooled = {arm.name: pooled_tables(arm.name, cells, scored) for arm in arms}
    complete = {name: list(tables.values()) for name, tables in pooled.items() if tables}
    resampled = None
    if complete:
        first = next(iter(complete.values()))[0]
        resampled = seed_bootstrap(
            complete, len(classes), ious_of(metric), affordable_resamples(first), protocol=protocol
        )
    rows = [
        _row(arm, cells, scored, pooled[arm.name], resampled, classes, protocol) for arm in arms
    ]
    rows.sort(key=lambda row: -fmean(row.scores) if row.scores else float("inf"))
    if resampled is None:
        return rows, [], None
    ranked = [row.name for row in rows if row.scores]
    spread = resampled.spread()
    return rows, _pairs(resampled, ranked), None if spread != spread else spread


def pooled_tables(
    arm: str, cells: Sequence[Cell], scored: Mapping[str, Scored]
) -> dict[int, MatchTable]:
    """Return the match table of each seed of an arm whose trainings, of all folds, were scored."""
    found = {}
    for seed in dict.fromkeys(cell.seed for cell in cells):
        names = [cell.name for cell in cells if (cell.arm, cell.seed) == (arm, seed)]
        if names and all(name in scored for name in names):
            tables = [scored[name].matches for name in names]
            found[seed] = MatchTable.concatenate(tables).sorted_by_image_id()
    return found


def _pairs(resampled: SeedResampled, ranked: Sequence[str]) -> list[Pair]:
    chosen = list(combinations(ranked, 2))
    if not chosen:
        return []
    return [
        Pair(
            candidate=candidate,
            reference=reference,
            gain=gain.value,
            low=gain.low,
            high=gain.high,
            distinguishable=gain.low > 0 or gain.high < 0,
        )
        for (candidate, reference), gain in zip(
            chosen, resampled.simultaneous_gains(chosen), strict=True
        )
    ]


def _row(
    arm: Arm,
    cells: Sequence[Cell],
    scored: Mapping[str, Scored],
    tables: Mapping[int, MatchTable],
    resampled: SeedResampled | None,
    classes: Sequence[str],
    protocol: Protocol,
) -> ArmResult:
    names = [cell.name for cell in cells if cell.arm == arm.name]
    own = [scored[name] for name in names if name in scored]
    means: dict[str, float] = {}
    for metric in ("ap", "ap50", "ap75"):
        values = [score(table, classes, protocol).metrics.get(metric) for table in tables.values()]
        known = [value for value in values if value is not None]
        if known:
            means[metric] = fmean(known)
    scores: list[float] = []
    interval = None
    if resampled is not None and tables:
        scores = resampled.per_seed(arm.name).tolist()
        interval = resampled.interval(arm.name)
    seconds = [one.seconds_per_step for one in own if one.seconds_per_step is not None]
    return ArmResult(
        name=arm.name,
        params=arm.params,
        seeds=list(tables),
        scores=scores,
        ap=means.get("ap"),
        ap50=means.get("ap50"),
        ap75=means.get("ap75"),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        spread=stdev(scores) if len(scores) > 1 else None,
        seconds_per_step=median(seconds) if seconds else None,
        health=_mean_health([one.health for one in own]),
        trials=names,
        failed=[name for name in names if name not in scored],
    )


def _mean_health(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for one in figures for key in one)
    return {key: fmean(one[key] for one in figures if key in one) for key in keys}
