"""Reports of sweeps that were not run, with names that a page must escape."""

import random

from pipeline.comparison.documents import Pair
from pipeline.metrics.bootstrap import Interval
from pipeline.sweep.documents import Arm, Statement, SweepReport, Trial

HOSTILE = '<script>alert("x")</script>&amp;'
SPACE = {
    "assign.name": {"choice": ["max_iou", "sim_ota", HOSTILE]},
    "assign.topk": {"int": [5, 20]},
    "assign.sigma": {"uniform": [1.5, 4.0]},
    "train.lr": {"loguniform": [0.001, 0.1]},
    "model.norm": {"choice": [None, True, 3, 0.5, "batch", [1, 2]]},
}
STATES = ("finished", "stopped early", "unfinished", "failed")


def make_trial(number: int, space=SPACE, epochs: int = 4) -> Trial:
    """Return a trial whose score follows ``train.lr``; ``assign.topk`` is only in some trials."""
    draw = random.Random(number)
    params = {}
    for field, spec in space.items():
        kind, values = next(iter(spec.items()))
        if kind == "choice":
            params[field] = draw.choice(values)
        elif kind == "int":
            params[field] = draw.randint(*values)
        else:
            params[field] = draw.uniform(*values)
    if params.get("assign.name") != "sim_ota":
        params.pop("assign.topk", None)
    state = STATES[number % 4] if number > 1 else "finished"
    best = 0.3 + params.get("train.lr", draw.random())
    curve = [(float(e), best * e / epochs) for e in range(1, epochs + 1)]
    return Trial(
        f"t{number:04d}",
        params,
        best,
        float(epochs),
        state,
        "run",
        error=f"{HOSTILE} in epoch 3" if state == "failed" else "",
        ap=best,
        ap50=best + 0.111,
        ap75=best + 0.055,
        low=best - 0.0321,
        high=best + 0.0321,
        seconds=1234.0 + number,
        curve=curve,
    )


def make_report(trials: int = 12, *, confirmed: bool = True, space=SPACE, **fields) -> SweepReport:
    rows = [make_trial(number, space, **fields) for number in range(trials)]
    rows.sort(key=lambda trial: (trial.best is None, -(trial.best or 0.0)))
    arms, pairs = [], []
    if confirmed:
        for name, score in (("t0001", 0.412), ("default", 0.387)):
            mean = Interval(score, score - 0.02, score + 0.02)
            seeds = [score - 0.0052, score + 0.0052]
            arms.append(
                Arm(name, {"assign.name": HOSTILE}, [1, 2], ["a", "b"], seeds, mean, 0.7, 0.3)
            )
        pairs = [Pair("t0001", "default", 0.025, -0.004, 0.054, False)]
    statement = Statement(
        metric="val/ap",
        mode="max",
        images=321,
        arms=arms,
        pairs=pairs,
        winner="t0001" if rows else "default",
        confirmed=confirmed,
        sentences=[f"The best is {HOSTILE}.", "It may be noise."],
    )
    recipe = f"# {HOSTILE}\ntrain:\n  epochs: 4\n"
    return SweepReport("search", "val/ap", "max", space, rows, statement, recipe, 75.0)
