"""Render the report of a sweep as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from pipeline.progress import counted
from pipeline.reports.charts.drawing import as_file, legend_symbol, shorten
from pipeline.reports.charts.learning import Curve, end_symbol, learning_chart
from pipeline.reports.charts.parameters import Scores, bar_chart, parallel_chart, slice_chart
from pipeline.reports.page import render_template
from pipeline.reports.page.arms import (
    METRIC_TITLES,
    ArmFigures,
    Difference,
    arm_symbols,
    arms_chart,
    differences_chart,
    metric_title,
)
from pipeline.storage.redact import mask
from pipeline.sweep.documents import SweepReport, Trial
from pipeline.sweep.domain import Domain
from pipeline.sweep.page.parameters import importances, parameter_axes, value_text

PAGE_NAME = "report.html"
HIGHLIGHTED = 5  # best trials that have colours of their own
_MAX_TEXT = 120  # characters of a value in the table


class Charts(NamedTuple):
    """The charts by name; ``left_out`` says why one is missing, by the same names."""

    charts: dict[str, str]
    slices: dict[str, str]  # by field
    left_out: dict[str, str]


def render_page(report: SweepReport, facts: Mapping[str, str]) -> str:
    """Return the page of a sweep. ``facts``, such as its MLflow run, end it as a table."""
    return _page(report, facts, draw_charts(report))


def render_files(report: SweepReport, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the page as ``report.html``, and each chart as ``charts/NAME.svg``, by path."""
    drawn = draw_charts(report)
    files = {PAGE_NAME: _page(report, facts, drawn)}
    files |= {f"charts/{name}.svg": as_file(chart) for name, chart in drawn.charts.items()}
    return files | {
        f"charts/slice-{field}.svg": as_file(chart) for field, chart in drawn.slices.items()
    }


def draw_charts(report: SweepReport) -> Charts:
    """Draw what the trials allow; with one trial there is nothing to compare."""
    metric = metric_title(report.metric)
    domains = {field: Domain.parse(field, spec) for field, spec in report.space.items()}
    scored = [trial for trial in report.trials if trial.best is not None]
    charts, slices, left_out = {}, {}, {}
    if any(trial.curve for trial in report.trials):
        charts["curves"] = learning_chart(
            f"{metric} over epochs", _curves(report), _highlighted(report), metric
        )
    else:
        left_out["curves"] = "no trial has been evaluated"
    arms, pairs = confirmed_arms(report), differences(report)
    if arms:
        charts["arms"] = arms_chart(arms, metric)
    if pairs:
        charts["differences"] = differences_chart(pairs, metric)
    ended = [trial for trial in scored if trial.status in ("finished", "stopped early")]
    shares, reason = importances(ended, domains, report.mode)
    if shares:
        charts["importance"] = bar_chart("Importance of each parameter", list(shares.items()))
    else:
        left_out["importance"] = reason
    if len(scored) < 2:
        reason = f"not drawn: it compares trials, and {counted(len(scored), 'trial')} has a score"
        return Charts(charts, {}, {**left_out, "parallel": reason, "slices": reason})
    scores = _scores(scored)
    axes = parameter_axes(scored, domains)
    charts["parallel"] = parallel_chart("Parameters of all trials", axes, scores, metric)
    slices = {axis.name: slice_chart(axis, scores, metric) for axis in axes}
    return Charts(charts, slices, left_out)


def confirmed_arms(report: SweepReport) -> list[ArmFigures]:
    """Return the points that were trained on further seeds."""
    return [
        ArmFigures(
            name=arm.name,
            value=arm.score.value,
            low=arm.score.low,
            high=arm.score.high,
            seeds=dict(zip(arm.seeds, arm.scores, strict=True)),
            metrics={
                name: value
                for name, value in (("ap50", arm.ap50), ("ap75", arm.ap75))
                if value is not None
            },
            text=", ".join(f"{field}={value_text(value)}" for field, value in arm.params.items()),
        )
        for arm in report.statement.arms
    ]


def differences(report: SweepReport) -> list[Difference]:
    """Return the differences between confirmed points."""
    return [
        Difference(
            pair.candidate, pair.reference, pair.gain, pair.low, pair.high, pair.distinguishable
        )
        for pair in report.statement.pairs
    ]


def _page(report: SweepReport, facts: Mapping[str, str], drawn: Charts) -> str:
    fields = [field for field in report.space if any(field in t.params for t in report.trials)]
    states = Counter(trial.status for trial in report.trials)
    own = report.metric.removeprefix("val/")
    shown = _highlighted(report)
    return render_template(
        Path(__file__).with_name("sweep.html.j2"),
        report=report,
        statement=report.statement,
        metric=metric_title(report.metric),
        own=own,
        others=[name for name in METRIC_TITLES if name != own],
        titles=METRIC_TITLES,
        columns={name: METRIC_TITLES[name] for name in ("ap50", "ap75") if name != own},
        fields=fields,
        cell=_cell,
        states={state: (count, end_symbol(state)) for state, count in states.items()},
        end_symbol=end_symbol,
        failed=[trial for trial in report.trials if trial.error],
        epochs=sum(trial.epochs for trial in report.trials),
        arms=confirmed_arms(report),
        differences=differences(report),
        charts=drawn.charts,
        slices=drawn.slices,
        left_out=drawn.left_out,
        legend=[(legend_symbol(number), name) for number, name in enumerate(shown)],
        symbols=arm_symbols(),
        mask=mask,
        facts={
            "sweep": report.sweep,
            "metric": f"{report.metric}, {'highest' if report.mode == 'max' else 'lowest'} is best",
            "time": f"{timedelta(seconds=round(report.seconds))}, of the last command",
            **facts,
        },
    )


def _cell(trial: Trial, field: str) -> str:
    """Return a searched value as text; a dash where the field does not matter."""
    return (
        shorten(mask(value_text(trial.params[field])), _MAX_TEXT) if field in trial.params else "–"
    )


def _curves(report: SweepReport) -> list[Curve]:
    curves = []
    for trial in report.trials:
        scores = [score for _, score in trial.curve]
        best = scores.index((max if report.mode == "max" else min)(scores)) if scores else -1
        curves.append(Curve(trial.name, trial.curve, trial.status, best))
    return curves


def _highlighted(report: SweepReport) -> list[str]:
    return [trial.name for trial in report.trials if trial.curve][:HIGHLIGHTED]


def _scores(scored: Sequence[Trial]) -> Scores:
    """Return the scores; the best is the first trial, since the table has the best first."""
    values = [float(trial.best or 0.0) for trial in scored]
    return Scores(
        [trial.name for trial in scored],
        values,
        [trial.status == "finished" for trial in scored],
        0,
    )
