"""The searched parameters on charts: the place of each value, and how much each one matters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.progress import counted
from pipeline.reports.charts.parameters import Axis
from pipeline.reports.charts.scale import range_scale
from pipeline.sweep.documents import Trial
from pipeline.sweep.domain import LISTS, Domain

MIN_IMPORTANCE_TRIALS = 10
_TOP_TRIALS = 5  # that Optuna compares with all, at least
_TOP_SHARE = 0.1


def parameter_axes(trials: Sequence[Trial], domains: Mapping[str, Domain]) -> list[Axis]:
    """Return an axis per field that a trial has, in the order of the space."""
    axes = []
    for field, domain in domains.items():
        values = [trial.params.get(field) for trial in trials]
        present = [field in trial.params for trial in trials]
        if not any(present):
            continue
        if domain.kind in LISTS:
            keys = [json.dumps(value) for value in domain.values]
            places = [
                keys.index(json.dumps(value)) if has else None
                for value, has in zip(values, present, strict=True)
            ]
            axes.append(Axis.of_list(field, places, [value_text(v) for v in domain.values]))
            continue
        low, high = domain.values
        if domain.kind == "int" and high - low <= 10:  # a tick per whole number
            scale = range_scale(low, high, ticks=int(high - low))
        else:
            scale = range_scale(low, high, log=domain.kind == "loguniform")
        axes.append(Axis.of_numbers(field, values, scale))
    return axes


def importances(
    trials: Sequence[Trial], domains: Mapping[str, Domain], mode: str
) -> tuple[dict[str, float], str]:
    """Return how much each field matters, as shares of 1, the largest first; or none, and why.

    ``trials`` have ended with scores. This is Optuna's PED-ANOVA: how the values of the best tenth
    of the trials, and of five at least, differ from those of all. It covers fields that only some
    trials have.
    """
    import optuna

    if len(trials) < MIN_IMPORTANCE_TRIALS:
        return {}, (
            f"not computed: from {counted(len(trials), 'trial')} with a score it would be chance; "
            f"it takes {MIN_IMPORTANCE_TRIALS}"
        )
    if len({trial.best for trial in trials}) == 1:
        return {}, "not computed: all trials have the same score"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    share = max(_TOP_SHARE, _TOP_TRIALS / len(trials))
    with warnings.catch_warnings():  # of options that may change, and of values few trials have
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        for trial in trials:
            study.enqueue_trial({f: domains[f].optuna_value(v) for f, v in trial.params.items()})
            asked = study.ask()
            for field in trial.params:
                domains[field].suggest(asked, field)
            study.tell(asked, trial.best)
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share),
            params=[field for field in domains if any(field in t.params for t in trials)],
            normalize=False,
        )
    total = sum(found.values())
    if not total:
        return {}, "not computed: the best trials have the same values as all trials"
    return {field: value / total for field, value in found.items()}, ""


def value_text(value: Any) -> str:
    """Return a value of a field as tables and charts show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
