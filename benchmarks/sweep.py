"""How many epochs ASHA needs to find a point as good as the best of the full grid.

    python -m benchmarks.sweep                      # replay the recorded curves; a minute
    python -m benchmarks.sweep --record --seed 0    # train the grid again first; 15 minutes of CPU
    python -m benchmarks.sweep --smoke              # record and replay a small grid; saves nothing

A grid of 16 points was trained for 12 epochs each, once (`benchmarks.sweep_curves`). Here the
search of `jobs.tune`, with its default settings, is given these points in random orders, and the
recorded score in place of each epoch. An order succeeds if the best trial of the sweep is at most
one standard error below the best point of the grid. The standard error is that of the AP of the
best point, over images. Epochs last one unit of time, give or take a tenth.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.sweep_curves import Recording, recipe, record
from pipeline.sweep.halving import SuccessiveHalving, rung_epochs
from pipeline.sweep.results import make_table
from pipeline.sweep.scheduler import RungScheduler
from pipeline.sweep.searcher import SpaceSearcher
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial_records import TrialRecord, TrialRecords

RESULTS = Path(__file__).parent / "results"
CONCURRENCIES = (1, 4, 16)
METRIC = "val/ap"


class MemoryRecords(TrialRecords):
    """Records of trials without their files."""

    def save(self, record: TrialRecord) -> None:
        """Keep a record."""
        self.all[record.name] = record


class _Trial:
    """What the scheduler reads of a trial of Ray Tune."""

    def __init__(self, name: str, number: int) -> None:
        self.config, self.id = {"name": name}, f"id{number}"


def replay(
    recording: Recording, order: random.Random, concurrency: int, **settings: Any
) -> tuple[float, float]:
    """Return the best score of a sweep, and its share of the epochs of the full grid.

    ``order`` draws the order of the points; ``settings`` are fields of ``sweep``.
    """
    curves = order.sample(recording.curves, len(recording.curves))
    scores = {json.dumps(curve.params, sort_keys=True): curve.scores for curve in curves}
    config = recipe(recording.seed, recording.epochs, {})
    space = {
        field: {"grid": list(dict.fromkeys(curve.params[field] for curve in recording.curves))}
        for field in curves[0].params
    }
    points = [curve.params for curve in curves]
    given = {"space": space, "points": points, "trials": len(points), **settings}
    config = config.replace({f"sweep.{name}": value for name, value in given.items()})
    records = MemoryRecords("/nowhere")
    samples = round(recording.steps_per_epoch * config.train.batch_size)
    halving = SuccessiveHalving(rung_epochs(config, samples), config.sweep, records)
    searcher = SpaceSearcher(SearchSpace(config), config.sweep, records, halving)
    scheduler = RungScheduler(halving, METRIC)
    running: list[tuple[float, int, _Trial]] = []  # by the time at which their epoch ends
    now, started, epochs = 0.0, 0, 0
    while True:
        while len(running) < concurrency:
            found = searcher.suggest(f"id{started}")
            if found is None or found == Searcher.FINISHED:
                break
            trial = _Trial(found["name"], started)
            heapq.heappush(running, (now + order.uniform(0.9, 1.1), started, trial))
            started += 1
        if not running:
            break
        now, number, trial = heapq.heappop(running)
        before = records.all[trial.config["name"]]
        curve = scores[json.dumps(before.params, sort_keys=True)]
        epoch, score = curve[len(before.scores)]
        epochs += 1
        result = {"epoch": epoch, METRIC: score}
        stops = scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP
        after = before.with_score(epoch, score)
        if len(after.scores) == len(curve):
            after = after.model_copy(update={"state": "finished"})
        elif stops:
            after = after.model_copy(update={"state": "stopped early"})
        records.save(after)
        if after.state == "unfinished":
            heapq.heappush(running, (now + order.uniform(0.9, 1.1), number, trial))
        else:
            searcher.on_trial_complete(trial.id)
    best = make_table(config, records, {})[0].best
    assert best is not None, "all trials have reported a score"
    return best, epochs / sum(len(curve) for curve in scores.values())


def measure(recording: Recording, orders: int = 100, **settings: Any) -> dict[str, Any]:
    """Replay a recording in random orders, with each number of trials at the same time."""
    grid = sorted((max(score for _, score in one.scores) for one in recording.curves), reverse=True)
    enough = grid[0] - recording.standard_error
    found: dict[str, Any] = {
        "seed": recording.seed,
        "best_of_grid": grid[0],
        "standard_error": recording.standard_error,
        "points_within_standard_error": sum(score >= enough for score in grid),
        "median_of_grid": grid[len(grid) // 2],
    }
    for concurrency in CONCURRENCIES:
        replayed = [
            replay(recording, random.Random(number), concurrency, **settings)
            for number in range(orders)
        ]
        shares = [share for _, share in replayed]
        found[f"concurrency_{concurrency}"] = {
            "orders": orders,
            "succeeded": sum(best >= enough for best, _ in replayed) / orders,
            "worst_ap": min(best for best, _ in replayed),
            "mean_share_of_epochs": round(sum(shares) / orders, 4),
            "max_share_of_epochs": round(max(shares), 4),
        }
    return found


def main() -> None:
    """Record if asked to, replay, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="train the grid again")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the trainings")
    parser.add_argument("--smoke", action="store_true", help="record and replay a small grid")
    options = parser.parse_args()
    if options.smoke:
        small = record(options.seed, epochs=2, images=16, limit=4)
        print(json.dumps(measure(small, orders=3, grace_epochs=1), indent=1))
        return
    path = RESULTS / f"sweep_curves_{options.seed}.json"
    if options.record:
        path.write_bytes(record(options.seed).encode())
    recordings = sorted(RESULTS.glob("sweep_curves_*.json"))
    if not recordings:
        parser.error(f"there is no recording in {RESULTS}; add --record")
    results = [measure(Recording.parse(one.read_bytes(), one.name)) for one in recordings]
    text = json.dumps(results, indent=1)
    print(text)
    (RESULTS / "sweep.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
