"""What `jobs.tune` prints: the table of trials, the confirmed points, and the statement."""

from jobs.tune import answer, trial_table
from pipeline.metrics.bootstrap import Interval
from pipeline.sweep.documents import DEFAULT, Arm, Statement, Trial
from tests.pipeline.sweep.answer.outcomes import best_settings


def test_table_has_figures_intervals_and_cost() -> None:
    better = best_settings(Interval(0.02, 0.01, 0.03))
    trials = [
        Trial(
            name="t0001",
            params={"assign.sigma": 2.5, "assign.name": "mutual_guidance"},
            best=0.51234,
            epochs=3.0,
            status="finished",
            run_id=None,
            ap=0.51234,
            ap50=0.7,
            ap75=0.4,
            low=0.4,
            high=0.6,
            seconds=61.7,
            postprocessing=better,
        ),
        Trial("t0002", {"assign.name": "max_iou"}, None, 0.0, "failed", None, error="no"),
    ]
    header, first, second = (" ".join(line.split()) for line in trial_table("val/ap", trials))
    assert header == (
        "val/ap 95% interval ap50 ap75 epochs seconds status post-processing assign.name "
        "assign.sigma trial"
    )
    assert first == (
        "0.5123 0.4000 to 0.6000 0.7000 0.4000 3.0 62 finished +0.0200 mutual_guidance 2.5 t0001"
    )
    assert second == "- - - - 0.0 - failed - max_iou - t0002"
    # The interval is that of the metric that ranks checkpoints, and of no other.
    other = trial_table("val/ap75", trials)[1].split()
    assert other[:4] == ["0.5123", "-", "0.5123", "0.7000"]


def test_answer_has_the_score_of_each_seed_and_the_statement() -> None:
    arms = [
        Arm(name, {}, [1, 2], [f"{name}-seed1", f"{name}-seed2"], [a, b], score, None, None)
        for name, a, b, score in (
            ("t0001", 0.5, 0.6, Interval(0.55, 0.5, 0.6)),
            (DEFAULT, 0.4, 0.5, Interval(0.45, 0.4, 0.5)),
        )
    ]
    statement = Statement(
        metric="val/ap", mode="max", arms=arms, winner="t0001", confirmed=True, sentences=["So."]
    )
    assert [" ".join(line.split()) for line in answer(statement)] == [
        "",
        "val/ap 95% interval seed 1 seed 2 confirmed",
        "0.5500 0.5000 to 0.6000 0.5000 0.6000 t0001",
        "0.4500 0.4000 to 0.5000 0.4000 0.5000 default",
        "",
        "So.",
        "",
    ]
    alone = statement.model_copy(update={"arms": [], "confirmed": False})
    assert answer(alone) == ["", "So.", ""]
