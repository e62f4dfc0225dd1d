"""Test that the page of a comparison shows every figure, loads nothing and escapes names."""

import pytest

from pipeline.comparison.documents import ArmResult, Comparison, Pair
from pipeline.comparison.page import render_files, render_page
from tests.pages import Page

HOSTILE = '<script>alert("x")</script>'
HEALTH = {"cls_positives_per_object_small": 1.26, "task_overlap": 0.43}


def make_arm(name: str, score: float | None, seeds: int = 3, **fields) -> ArmResult:
    known = score is not None
    values = {
        "params": {"assign.name": name},
        "seeds": list(range(seeds)) if known else [],
        "scores": [score + 0.0011 * seed for seed in range(seeds)] if known else [],
        "ap": score,
        "ap50": score + 0.222 if known else None,
        "ap75": score - 0.033 if known else None,
        "low": score - 0.0321 if known else None,
        "high": score + 0.0321 if known else None,
        "spread": 0.0047 if known and seeds > 1 else None,
        "seconds_per_step": 0.1234 if known else None,
        "health": HEALTH if known else {},
        "trials": [f"{name}-{seed}" for seed in range(seeds)],
        "failed": [] if known else [f"{name}-0"],
        **fields,
    }
    return ArmResult(name=name, **values)


def make(*arms: ArmResult, seeds: int = 3, folds: int = 0, metric="ap", pairs=()) -> Comparison:
    return Comparison(
        run="assigners",
        metric=metric,
        protocol="coco" if metric == "ap" else "voc",
        data="shapes",
        images=777,
        epochs=12.0,
        seeds=list(range(seeds)),
        folds=folds,
        table=list(arms),
        pairs=list(pairs),
        spread=0.0047 if seeds > 1 else None,
        sentences=[f"{HOSTILE} is better.", "The others may be noise."],
        seconds=4000.0,
    )


PAIRS = (
    Pair("atss", "max_iou", 0.05, 0.012, 0.088, True),
    Pair(HOSTILE, "max_iou", 0.01, -0.02, 0.04, False),
)


@pytest.mark.parametrize("metric", ["ap", "ap50"])
def test_page_has_every_figure_and_loads_nothing(metric) -> None:
    arms = [make_arm("atss", 0.45), make_arm(HOSTILE, 0.41), make_arm("max_iou", 0.4)]
    content = render_page(make(*arms, pairs=PAIRS, metric=metric), {"MLflow run": HOSTILE})
    page = Page(content)
    page.check_is_self_contained()
    assert "<script" not in content
    for arm in arms:
        assert arm.name in page.text
        value = arm.ap if metric == "ap" else arm.ap50
        assert f"{value:.3f} [{arm.low:.3f}, {arm.high:.3f}]" in page.text
        for figure in (arm.ap, arm.ap50, arm.ap75):
            assert f"{figure:.3f}" in page.text
        assert ", ".join(f"{score:.3f}" for score in arm.scores) in page.text
    for text in ("0.005", "123", "1.26", "0.43", "777", "1:06:40", "The others may be noise."):
        assert text in page.text
    assert "+0.050 [+0.012, +0.088]better" in page.text.replace("\n", "")
    assert "+0.010 [-0.020, +0.040]may be noise" in page.text.replace("\n", "")


def test_folds_and_one_seed_are_explained() -> None:
    arms = [make_arm("a", 0.4, 1), make_arm("b", 0.3, 1)]
    page = Page(render_page(make(*arms, seeds=1, folds=5), {}))
    assert "one of 5 trainings that has not seen it" in page.text
    assert "with one seed they do not cover the seed" in page.text
    assert "spread" not in page.text


def test_arms_without_a_score_name_their_trainings() -> None:
    page = Page(render_page(make(make_arm("a", 0.4), make_arm("b", None)), {}))
    page.check_is_self_contained()
    assert "b: b-0" in page.text
    assert "there is nothing to compare" in page.text
    empty = Page(render_page(make(make_arm("a", None), make_arm("b", None)), {}))
    empty.check_is_self_contained()
    assert "Assignment" not in empty.text


def test_files_are_the_page_and_its_charts() -> None:
    result = make(make_arm("a", 0.4), make_arm("b", 0.3), pairs=PAIRS)
    files = render_files(result, {})
    assert set(files) == {"report.html", "charts/arms.svg", "charts/differences.svg"}
    assert files["report.html"].count('class="chart"') == 2
    assert set(render_files(make(make_arm("a", None)), {})) == {"report.html"}
