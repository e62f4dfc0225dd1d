"""Figures of arms from match tables: means over seeds, pooled folds, differences, failed cells."""

import numpy as np
import pytest

from pipeline.comparison.arms import Arm
from pipeline.comparison.cells import Cell
from pipeline.comparison.documents import Comparison
from pipeline.comparison.figures import Scored, make_table, pooled_tables
from pipeline.comparison.results import as_text
from pipeline.comparison.statement import sentences
from pipeline.metrics import ImageDetections, MatchTable, Objects, coco_metrics, match_images

CLASSES = ["a"]
ARMS = [Arm("good", {"train.lr": 0.1}), Arm("bad", {"train.lr": 0.01})]


def table(images: range, shift: float, seed: int) -> MatchTable:
    """Return matches of two objects per image, found up to ``shift`` pixels beside them."""
    generator = np.random.default_rng([seed, images.start])
    boxes = np.array([[10, 10, 50, 50], [60, 60, 100, 100]], np.float64)
    labels, none = np.zeros(2, np.int64), np.zeros(2, np.bool_)
    truth = Objects(boxes, labels, none, none, np.full(2, 1600.0))
    return match_images(
        (
            f"{number:03d}",
            truth,
            ImageDetections(
                boxes + generator.uniform(-shift, shift, (2, 4)),
                generator.uniform(0.2, 1.0, 2),
                labels,
            ),
        )
        for number in images
    )


def cells(seeds: int, folds: int = 1) -> list[Cell]:
    return [
        Cell(arm.name, seed, fold, f"{arm.name}-{seed}-{fold}", arm.params)
        for seed in range(seeds)
        for fold in range(folds)
        for arm in ARMS
    ]


def scored(seeds: int, folds: int = 1) -> dict[str, Scored]:
    """Return the trainings of two arms, of which one is clearly better."""
    found = {}
    for cell in cells(seeds, folds):
        assert cell.fold is not None
        images = range(20 * cell.fold, 20 * cell.fold + 20)
        shift = 2.0 if cell.arm == "good" else 9.0
        matches = table(images, shift, cell.seed)
        found[cell.name] = Scored(matches, 0.5 + cell.seed, {"task_overlap": 0.1 * cell.seed})
    return found


def test_row_is_the_mean_over_seeds() -> None:
    trained = scored(3)
    rows, pairs, spread = make_table(ARMS[::-1], cells(3), trained, CLASSES, "coco")
    assert [row.name for row in rows] == ["good", "bad"]
    good = rows[0]
    each = [coco_metrics(trained[f"good-{seed}-0"].matches, CLASSES).metrics for seed in range(3)]
    assert good.scores == pytest.approx([one["ap"] for one in each])
    for name in ("ap", "ap50", "ap75"):
        assert getattr(good, name) == pytest.approx(np.mean([one[name] for one in each]))
    assert good.spread == pytest.approx(np.std(good.scores, ddof=1))
    assert good.low is not None and good.high is not None and good.ap is not None
    assert good.low < good.ap < good.high
    assert good.seconds_per_step == 1.5 and good.health["task_overlap"] == pytest.approx(0.1)
    assert spread is not None and spread > 0
    (pair,) = pairs
    assert (pair.candidate, pair.reference, pair.distinguishable) == ("good", "bad", True)
    assert pair.gain == pytest.approx(np.mean(rows[0].scores) - np.mean(rows[1].scores))


def test_folds_are_scored_as_one_set() -> None:
    trained = scored(2, folds=3)
    rows, _, _ = make_table(ARMS, cells(2, 3), trained, CLASSES, "coco")
    together = pooled_tables("bad", cells(2, 3), trained)[1]
    assert together.images == 60
    assert rows[1].scores[1] == pytest.approx(coco_metrics(together, CLASSES).metrics["ap"])
    parts = [
        coco_metrics(trained[f"bad-1-{fold}"].matches, CLASSES).metrics["ap"] for fold in range(3)
    ]
    assert rows[1].scores[1] != pytest.approx(np.mean(parts), abs=1e-6)


def test_seed_with_a_failed_training_does_not_count() -> None:
    trained = scored(2, folds=2)
    del trained["bad-1-0"]
    rows, pairs, _ = make_table(ARMS, cells(2, 2), trained, CLASSES, "coco")
    assert (rows[1].seeds, rows[1].failed, rows[1].spread) == ([0], ["bad-1-0"], None)
    assert len(rows[1].trials) == 4 and pairs
    for name in [name for name in trained if name.startswith("bad-0")]:
        del trained[name]
    rows, pairs, _ = make_table(ARMS, cells(2, 2), trained, CLASSES, "coco")
    assert (rows[1].name, rows[1].ap, rows[1].scores, pairs) == ("bad", None, [], [])
    said = sentences("ap", 40, rows, pairs, None, 2)
    assert said[0].startswith("bad lacks 3 trainings that failed: bad-0-0")
    assert "nothing to compare" in said[1]


def test_equal_arms_are_not_distinguishable() -> None:
    trained = scored(2)
    for seed in range(2):
        trained[f"bad-{seed}-0"] = trained[f"good-{seed}-0"]
    rows, pairs, spread = make_table(ARMS, cells(2), trained, CLASSES, "coco")
    assert pairs[0].gain == 0 and not pairs[0].distinguishable
    said = " ".join(sentences("ap", 20, rows, pairs, spread, 0))
    assert "No difference between the 2 arms is distinguishable from noise" in said


def test_one_seed_is_said_to_prove_nothing_about_seeds() -> None:
    rows, pairs, spread = make_table(ARMS, cells(1), scored(1), CLASSES, "coco")
    assert spread is None and rows[0].spread is None
    said = sentences("ap", 20, rows, pairs, spread, 0)
    assert "another seed could reverse any difference" in said[-1]


def test_text_has_a_row_per_arm_and_says_what_differs() -> None:
    rows, pairs, spread = make_table(ARMS, cells(2), scored(2), CLASSES, "coco")
    result = Comparison(
        run="c",
        metric="ap",
        protocol="coco",
        data="set",
        images=20,
        epochs=2,
        seeds=[0, 1],
        folds=0,
        table=rows,
        pairs=pairs,
        spread=spread,
        sentences=sentences("ap", 20, rows, pairs, spread, 0),
        seconds=1.0,
    )
    lines = as_text(result).splitlines()
    assert lines[0].split()[:4] == ["arm", "ap", "ap50", "ap75"]
    assert lines[1].split()[:2] == ["good", f"{rows[0].ap:.4f}"]
    assert any(line.startswith("good - bad") and "distinguishable" in line for line in lines)
    assert any(line.startswith("good is better than bad: AP +") for line in lines)
    assert "2 degrees of freedom" in lines[-1]
    assert Comparison.parse(result.encode(), "x") == result
