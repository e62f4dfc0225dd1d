"""Train the best points of a search, and the recipe as it is, on seeds the search has not seen.

The best of several trials is partly luck, so the scores of the search do not count here. What a
confirmation needs is trained once: it is resumed, and extended by points and seeds, like a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from model.options import ASSIGNER_OPTIONS
from pipeline.comparison.documents import Pair
from pipeline.config import Config
from pipeline.metrics import MatchTable
from pipeline.metrics.bootstrap import Interval, SeedResampled, seed_bootstrap
from pipeline.metrics.summary import affordable_resamples
from pipeline.metrics.table import IOU_THRESHOLDS
from pipeline.sweep.documents import DEFAULT, Arm, Trial
from pipeline.sweep.space import SearchSpace
from pipeline.trials.outcome import TrialOutcome
from pipeline.trials.relevance import field_value
from pipeline.trials.trial import trial_config
from pipeline.trials.trial_records import Params, TrialRecords

FOLDER = "confirm"
_ALL_IOUS = tuple(range(len(IOU_THRESHOLDS)))
# The IoU thresholds of a metric, and its range of area.
COMPARABLE: dict[str, tuple[tuple[int, ...], int]] = {
    "val/ap": (_ALL_IOUS, 0),
    "val/ap50": ((0,), 0),
    "val/ap75": ((5,), 0),
    "val/ap_small": (_ALL_IOUS, 1),
    "val/ap_medium": (_ALL_IOUS, 2),
    "val/ap_large": (_ALL_IOUS, 3),
}


def chosen_arms(
    config: Config, trials: Sequence[Trial], confirmed: TrialRecords
) -> dict[str, Params]:
    """Return what to train again by name: the default, and points of trials, given best first.

    These are the best ``sweep.confirm.points`` that were trained to the end, and those that were
    confirmed before. Without such points, or with ``points: 0``, nothing is confirmed. A point
    that is the recipe itself counts as the default.
    """
    settings = config.sweep.confirm
    before = {name.rpartition("-seed")[0] for name in confirmed.all}
    recipe = _trained(config, {})
    points: dict[str, Params] = {}
    best = 0
    for trial in trials:
        is_default = _trained(config, trial.params) == recipe
        if trial.status != "finished" or trial.best is None or is_default:
            continue
        best += 1
        if settings.points and (best <= settings.points or trial.name in before):
            points[trial.name] = trial.params
    return {DEFAULT: {}, **points} if points else {}


def _trained(config: Config, params: Params) -> dict[str, Any]:
    """Return the configuration of a trial with the options of its assigner, also where unset."""
    tree = trial_config(config, params).recorded()
    given = tree["assign"]
    own = ASSIGNER_OPTIONS[given["name"]].declared()
    options = {
        name: option.default if given[name] is None else given[name] for name, option in own.items()
    }
    return {**tree, "assign": {"name": given["name"], **options}}


def further_seeds(config: Config) -> list[int]:
    """Return the seeds that follow the one of the search."""
    return [config.train.seed + number + 1 for number in range(config.sweep.confirm.seeds)]


def training_name(arm: str, seed: int) -> str:
    """Return the name of the training of an arm with a seed."""
    return f"{arm}-seed{seed}"


def trainings(config: Config, arms: Mapping[str, Params]) -> dict[str, Params]:
    """Return the values of each training by name: one seed of all arms, then the next."""
    return {
        training_name(arm, seed): {**params, "train.seed": seed}
        for seed in further_seeds(config)
        for arm, params in arms.items()
    }


def is_complete(config: Config, arms: Mapping[str, Params], confirmed: TrialRecords) -> bool:
    """Return whether all trainings have ended well."""
    known = confirmed.all
    names = trainings(config, arms)
    return all(name in known and known[name].state == "finished" for name in names)


def default_values(config: Config, space: SearchSpace) -> Params:
    """Return the values that the recipe has for the searched fields, if they matter in it."""
    return space.complete({}, lambda field, _domain: field_value(config, field))


def compare_arms(
    config: Config,
    classes: int,
    arms: Mapping[str, Params],
    outcomes: Mapping[str, TrialOutcome],
    matches: Mapping[str, Sequence[MatchTable]],
) -> tuple[list[Arm], list[Pair], float | None]:
    """Return arms, the best first, their comparisons, and the spread over seeds if it is known.

    ``matches`` are the tables of each arm that is compared, one per seed, and ``outcomes`` those of
    the trainings by name. The intervals of all differences from the default hold together, and so
    do those between points: if all are equal, one in 20 sweeps calls any of them different.
    """
    ious, area = COMPARABLE[config.sweep.metric]
    first = next(iter(matches.values()))[0]
    resampled = seed_bootstrap(
        matches,
        classes,
        ious,
        affordable_resamples(first),
        protocol=config.evaluate.protocol,
        area=area,
    )
    sign = 1.0 if config.sweep.mode == "max" else -1.0
    found = [_arm(config, name, arms[name], outcomes, resampled) for name in matches]
    ranked = sorted(found, key=lambda arm: -sign * arm.score.value)
    points = [arm.name for arm in ranked if arm.name != DEFAULT]
    against = [(name, DEFAULT) for name in points if DEFAULT in matches]
    pairs = [
        _pair(candidate, reference, gain)
        for some in (against, list(combinations(points, 2)))
        for (candidate, reference), gain in zip(
            some, resampled.simultaneous_gains(some), strict=True
        )
    ]
    spread = resampled.spread()
    return ranked, pairs, None if spread != spread else spread


def _arm(
    config: Config,
    name: str,
    params: Params,
    outcomes: Mapping[str, TrialOutcome],
    resampled: SeedResampled,
) -> Arm:
    seeds = further_seeds(config)
    names = [training_name(name, seed) for seed in seeds]

    def mean(metric: str) -> float | None:
        values = [outcomes[one].metrics.get(metric) for one in names]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Arm(
        name=name,
        params=params,
        seeds=seeds,
        trials=names,
        scores=resampled.per_seed(name).tolist(),
        score=resampled.interval(name),
        ap50=mean("ap50"),
        ap75=mean("ap75"),
    )


def _pair(candidate: str, reference: str, gain: Interval) -> Pair:
    return Pair(
        candidate=candidate,
        reference=reference,
        gain=gain.value,
        low=gain.low,
        high=gain.high,
        distinguishable=gain.low > 0 or gain.high < 0,
    )
