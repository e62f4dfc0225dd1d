"""Test that the page of a sweep shows every figure, loads nothing, and escapes what it is given."""

import dataclasses

import pytest

from pipeline.reports.page.arms import METRIC_TITLES
from pipeline.sweep.documents import Trial
from pipeline.sweep.domain import Domain
from pipeline.sweep.page import render_files, render_page
from pipeline.sweep.page.parameters import importances, parameter_axes, value_text
from tests.pages import Page
from tests.pipeline.sweep.reports import HOSTILE, SPACE, STATES, make_report, make_trial


def test_page_has_every_figure_and_loads_nothing() -> None:
    report = make_report()
    page = Page(render_page(report, {"MLflow run": HOSTILE}))
    page.check_is_self_contained()
    for trial in report.trials:
        assert trial.name in page.text
        for value in (trial.best, trial.ap50, trial.ap75):
            assert f"{value:.3f}" in page.text
        assert f"[{trial.low:.3f}, {trial.high:.3f}]" in page.text
        assert f"{trial.seconds:.0f}" in page.text
        for value in trial.params.values():
            assert value_text(value) in page.text
    for arm in report.statement.arms:
        assert f"{arm.score.value:.3f} [{arm.score.low:.3f}, {arm.score.high:.3f}]" in page.text
        assert ", ".join(f"{score:.3f}" for score in arm.scores) in page.text
    assert "+0.025 [-0.004, +0.054]" in page.text
    assert "may be noise" in page.text
    assert "321 images" in page.text
    for text in (*STATES, *SPACE, *METRIC_TITLES.values(), "0:01:15", "epochs: 4"):
        assert text in page.text


def test_given_names_and_texts_are_escaped() -> None:
    content = render_page(make_report(), {HOSTILE: HOSTILE})
    page = Page(content)
    assert "<script" not in content
    assert page.text.count(HOSTILE) >= 6  # statement, table, arm, recipe, charts, facts
    assert f"{HOSTILE} in epoch 3" in page.text


def test_secrets_in_errors_are_masked() -> None:
    report = make_report(1)
    trial = Trial("t9", {}, None, 0.0, "failed", None, error="no s3://me:hunter2@store/x")
    content = render_page(dataclasses.replace(report, trials=[trial]), {})
    assert "hunter2" not in content


def test_stopped_trials_are_marked_by_shape_and_word() -> None:
    content = render_page(make_report(), {})
    rows = [row for row in content.split("<tr>") if 'class="state"' in row]
    cells = {row.split('class="state">')[1].split("</td>")[0] for row in rows}
    words = {cell.rpartition(">")[2] for cell in cells}
    assert words == set(STATES)
    symbols = {cell.rpartition(">")[0] for cell in cells}
    assert len(symbols) == len(STATES)


def test_files_are_the_page_and_every_chart() -> None:
    files = render_files(make_report(24), {})
    assert set(files) == {
        "report.html",
        *(f"charts/{name}.svg" for name in ("arms", "differences", "curves", "importance")),
        *(f"charts/{name}.svg" for name in ("parallel", *(f"slice-{field}" for field in SPACE))),
    }
    assert files == render_files(make_report(24), {})
    assert files["report.html"].count('class="chart"') == len(files) - 1


@pytest.mark.parametrize(
    ("trials", "missing"),
    [
        (0, ("no trial has been evaluated", "it compares trials")),
        (1, ("it compares trials", "from 1 trial with a score")),
        (2, ("from 2 trials with a score",)),
    ],
)
def test_few_trials_leave_out_charts_with_the_reason(trials: int, missing) -> None:
    page = Page(render_page(make_report(trials, confirmed=False), {}))
    page.check_is_self_contained()
    for text in (*missing, "No point was trained on further seeds"):
        assert text in page.text


def test_trials_without_a_score_are_in_the_table_only() -> None:
    report = make_report(3)
    failed = Trial("t0999", {"assign.name": "max_iou"}, None, 0.0, "failed", None, error="no disk")
    report = dataclasses.replace(report, trials=[*report.trials, failed])
    page = Page(render_page(report, {}))
    assert "t0999: no disk" in page.text
    assert page.text.count("t0999") == 2  # its row and its error


def test_page_of_500_trials_and_12_fields_is_small() -> None:
    space = {**SPACE, **{f"model.field{n}": {"choice": ["x" * 60, "y"]} for n in range(7)}}
    content = render_page(make_report(500, space=space, epochs=300), {})
    assert len(content.encode()) < 3_000_000
    Page(content).check_is_self_contained()


def domains(space) -> dict[str, Domain]:
    return {field: Domain.parse(field, spec) for field, spec in space.items()}


def ended(count: int, space=SPACE) -> list[Trial]:
    rows = [make_trial(number, space) for number in range(2 * count)]
    return [row for row in rows if row.status in ("finished", "stopped early")][:count]


def test_importance_finds_the_field_that_decides_the_score() -> None:
    shares, reason = importances(ended(60), domains(SPACE), "max")
    assert next(iter(shares)) == "train.lr"
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set(SPACE)  # also the one that only some trials have
    assert reason == ""
    assert importances(ended(60), domains(SPACE), "max")[0] == shares
    assert next(iter(importances(ended(60), domains(SPACE), "min")[0])) == "train.lr"


@pytest.mark.parametrize(
    "space", [{"train.lr": SPACE["train.lr"]}, {"model.norm": SPACE["model.norm"]}]
)
def test_importance_of_one_field_only(space) -> None:
    assert importances(ended(30, space), domains(space), "max")[0] in ({next(iter(space)): 1.0}, {})


def test_importance_of_equal_scores_is_left_out() -> None:
    trials = [
        Trial(f"t{n}", {"assign.sigma": 2.0 + n / 50}, 0.5, 1, "finished", None) for n in range(20)
    ]
    shares, reason = importances(trials, domains(SPACE), "max")
    assert shares == {}
    assert "same score" in reason
    page = Page(render_page(dataclasses.replace(make_report(1), trials=trials), {}))
    assert "all trials have the same score" in page.text


def test_axes_hold_values_of_mixed_types() -> None:
    trials = ended(40)
    axes = {axis.name: axis for axis in parameter_axes(trials, domains(SPACE))}
    assert list(axes) == list(SPACE)
    labels = [text for _, text in axes["model.norm"].ticks]
    assert labels == ["null", "true", "3", "0.5", "batch", "[1, 2]"]
    for trial, share in zip(trials, axes["model.norm"].shares, strict=True):
        index = min(range(6), key=lambda i: abs(axes["model.norm"].ticks[i][0] - share))
        assert labels[index] == value_text(trial.params["model.norm"])
    absent = [share is None for share in axes["assign.topk"].shares]
    assert absent == ["assign.topk" not in trial.params for trial in trials]
    assert 0 < sum(absent) < len(absent)
    for axis in axes.values():
        assert all(share is None or 0 <= share <= 1 for share in axis.shares)


def test_axis_of_a_field_that_no_trial_has_is_left_out() -> None:
    trials = [Trial("t1", {"train.lr": 0.01}, 0.5, 1, "finished", None)]
    assert [axis.name for axis in parameter_axes(trials, domains(SPACE))] == ["train.lr"]


def test_interval_is_beside_the_metric_that_it_is_of() -> None:
    report = make_report(2)
    trials = [dataclasses.replace(trial, ap50=0.777, metric="ap50") for trial in report.trials]
    report = dataclasses.replace(report, trials=trials)
    text = Page(render_page(report, {})).text
    assert text.count(f"0.777 [{trials[0].low:.3f}") == 1
    assert f"{trials[0].best:.3f} [" not in text
