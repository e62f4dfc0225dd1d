"""Test that charts are valid SVG, show every item, escape texts, and stay inside their frame."""

import re
from itertools import pairwise

import pytest
from defusedxml.ElementTree import fromstring

from pipeline.reports.charts.drawing import as_file
from pipeline.reports.charts.intervals import Row, interval_chart
from pipeline.reports.charts.learning import MAX_POINTS, Curve, end_symbol, learning_chart, thin
from pipeline.reports.charts.parameters import (
    Axis,
    Scores,
    bar_chart,
    parallel_chart,
    slice_chart,
)
from pipeline.reports.charts.scale import range_scale

HOSTILE = '<script>"x"&</script>'
SVG = "{http://www.w3.org/2000/svg}"


def parse(chart: str):
    """Return the root of a chart, after a check that nothing is placed outside of it."""
    assert "nan" not in chart.lower().replace("nance", "")
    root = fromstring(as_file(chart))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, limit in (("x", width), ("y", height), ("cx", width), ("cy", height)):
            if name in element.attrib:
                assert -0.1 <= float(element.attrib[name]) <= limit + 0.1
        for point in element.attrib.get("points", "").split():
            x, y = map(float, point.split(","))
            assert -0.1 <= x <= width + 0.1
            assert -0.1 <= y <= height + 0.1
    return root


def texts(root) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}text")]


def titles(root) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}title")]


def scores(*values: float, best: int = 0, complete: bool = True) -> Scores:
    return Scores([f"t{i}" for i in range(len(values))], values, [complete] * len(values), best)


def test_intervals_show_each_row_with_its_seeds() -> None:
    rows = [
        Row(HOSTILE, 0.5, 0.4, 0.6, [0.48, 0.52]),
        Row("unknown interval", 0.3),
        Row("x" * 100, 0.3, 0.3, 0.3, [0.3], strong=False),
    ]
    root = parse(interval_chart("AP", rows, HOSTILE))
    assert HOSTILE in texts(root)
    assert HOSTILE in titles(root)
    assert "x" * 100 in titles(root)
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    hollow = [e for e in root.iter() if e.attrib.get("class") == "hollow"]
    assert len(hollow) == 1


def test_differences_have_a_line_at_zero() -> None:
    rows = [Row("a", 0.05, 0.04, 0.06)]
    assert "0.00" in texts(parse(interval_chart("AP", rows, "difference", zero=True)))
    assert "0.00" not in texts(parse(interval_chart("AP", rows, "AP")))


def test_intervals_of_nothing_are_an_empty_chart() -> None:
    parse(interval_chart("AP", [], "AP", zero=True))


def test_learning_curves_mark_how_trainings_ended() -> None:
    line = [(1.0, 0.1), (2.0, 0.3), (3.0, 0.2)]
    curves = [
        Curve("a", line, "finished", 1),
        Curve("b", line[:2], "stopped early", 1),
        Curve("c", line[:1], "failed", 0),
        Curve(HOSTILE, line[:1], "unfinished", 0),
        Curve("e", [], "failed"),
    ]
    root = parse(learning_chart("AP over epochs", curves, ["a"], "AP"))
    assert [t for t in titles(root) if ":" in t] == [
        "b: stopped early",
        "c: failed",
        f"{HOSTILE}: unfinished",
        "a: finished",
    ]
    marked = {state: end_symbol(state) for state in ("stopped early", "failed", "unfinished")}
    assert len(set(marked.values())) == 3
    assert end_symbol("finished") == ""
    # The marker is at the best score, not at the end.
    (group,) = (g for g in root.iter(f"{SVG}g") if g[0].text == "a: finished")
    places = group.find(f"{SVG}polyline").attrib["points"].split()
    marker = group.find(f"{SVG}circle").attrib
    assert places[1] == f"{float(marker['cx']):.1f},{float(marker['cy']):.1f}"


def test_learning_curves_without_points_and_with_one() -> None:
    parse(learning_chart("AP", [], [], "AP"))
    parse(learning_chart("AP", [Curve("a", [(0.5, 0.0)], "finished", 0)], ["a"], "AP"))


def test_long_curves_are_thinned_to_even_points() -> None:
    points = [(float(i), float(i)) for i in range(1000)]
    kept = thin(points)
    assert len(kept) == MAX_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(b[0] - a[0] for a, b in pairwise(kept)) <= 9
    assert thin(points[:5]) == points[:5]


def test_slice_over_numbers_leaves_out_trials_without_the_parameter() -> None:
    axis = Axis.of_numbers("sigma", [1.5, None, 4.0], range_scale(1.5, 4.0))
    root = parse(slice_chart(axis, scores(0.1, 0.2, 0.3, best=2), "AP"))
    assert {"t0: 0.1000", "t2: 0.3000"} <= set(titles(root))
    assert "t1: 0.2000" not in titles(root)


def test_slice_over_a_list_has_a_row_per_value() -> None:
    axis = Axis.of_list("assign.name", [0, 1, None, 0], ["max_iou", HOSTILE, "never"])
    root = parse(slice_chart(axis, scores(0.1, 0.1, 0.1, 0.1), "AP"))
    assert {"max_iou (2)", f"{HOSTILE} (1)", "never (0)"} <= set(texts(root))


def test_crosses_are_trials_that_did_not_finish() -> None:
    axis = Axis.of_numbers("sigma", [1.5, 2.0], range_scale(1.5, 4.0))
    finished = slice_chart(axis, scores(0.1, 0.2), "AP")
    stopped = slice_chart(axis, scores(0.1, 0.2, complete=False), "AP")
    assert finished.count("<circle") == 1  # the best one is a diamond
    assert stopped.count("<circle") == 0


@pytest.mark.parametrize("count", [1, 2, 200])
def test_parallel_coordinates_have_a_line_per_trial(count: int) -> None:
    axes = [
        Axis.of_numbers("a", [1.0] * count, range_scale(0.0, 1.0)),
        Axis.of_list(HOSTILE, [None, *[0] * (count - 1)], [HOSTILE]),
    ]
    values = [index / count for index in range(count)]
    root = parse(parallel_chart("all", axes, scores(*values, best=count - 1), "AP"))
    lines = list(root.iter(f"{SVG}polyline"))
    assert len(lines) == count
    assert all(len(line.attrib["points"].split()) == 3 for line in lines)
    assert texts(root).count("none") == 1
    best = [line for line in lines if line.attrib["stroke-width"] == "2.5"]
    assert [line[0].text for line in best] == [f"t{count - 1}: {values[-1]:.4f}"]
    assert lines[-1] is best[0]  # drawn over the others


def test_bars_are_shares() -> None:
    root = parse(bar_chart("importance", [(HOSTILE, 0.75), ("b", 0.0)]))
    assert texts(root) == [HOSTILE, "75%", "b", "0%"]


def test_files_are_the_charts_with_their_own_style() -> None:
    chart = bar_chart("importance", [("a", 1.0)])
    file = as_file(chart)
    assert re.match(r'<svg xmlns="http://www.w3.org/2000/svg" class="chart"', file)
    assert "<style>" in file
    assert "<style>" not in chart
