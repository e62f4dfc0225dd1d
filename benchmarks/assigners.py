"""Is one assigner ahead of the others? Three sets, several seeds, intervals over images and seeds.

    python -m benchmarks.assigners run SET --train SHARDS --val SHARDS [--seeds 4] [--work DIR]
    python -m benchmarks.assigners pool [--work DIR]

``run`` trains every arm on a set with `jobs.compare`, two at a time on 2 cores, and resumes.
``pool`` writes the results of all sets so far, the means over them, and the plot of
docs/accuracy.md. The recipe of a set is the same for all arms but for the assigner and the losses
that follow it; its length and learning rate were chosen before any assigners were compared.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.accuracy import MACHINE, run_job
from pipeline.comparison.documents import Comparison
from pipeline.data import load_manifest
from pipeline.metrics.bootstrap import SeedResampled, pooled_gains, seed_bootstrap
from pipeline.trials.outcome import load_matches

RESULTS = Path(__file__).parent / "results" / "assigners.json"
PLOT = Path(__file__).parents[1] / "docs" / "pictures" / "assigners.png"
PRETRAINED = {
    "model.backbone": "efficientnet_lite0",
    "model.init": "imagenet",
    "model.freeze_stages": 4,
    "data.crop": 0.3,
    "data.photometric": 0.5,
}
RECIPES: dict[str, dict[str, Any]] = {
    # --source shapes --size 192 --object-sides 8,28 --max-objects 12, 500 and 200 images
    "small": {
        "model.image_size": 192,
        "model.anchor_base": 16,
        "data.photometric": 0.5,
        "train.precision": "bf16",
        "train.epochs": 10,
    },
    "bccd": {
        **PRETRAINED,
        "model.image_size": 256,
        "data.flip_vertical": 0.5,
        "train.epochs": 15,
    },
    "cards": {**PRETRAINED, "model.image_size": 192, "train.epochs": 12},
}
ARMS: dict[str, dict[str, Any]] = {
    "max_iou": {"assign.name": "max_iou"},
    "mutual_guidance": {"assign.name": "mutual_guidance"},
    "mutual_guidance_soft": {"assign.name": "mutual_guidance_soft"},
    # When these were trained, loss.poly was 1 for all assigners.
    "task_aligned": {"assign.name": "task_aligned", "loss.poly": 1.0},
    "task_aligned_siou": {
        "assign.name": "task_aligned",
        "loss.overlap": "siou",
        "loss.poly": 1.0,
    },
    "sim_ota": {"assign.name": "sim_ota", "loss.poly": 1.0},
    "atss": {"assign.name": "atss"},
    "soft_near": {
        "assign.name": "mutual_guidance_soft",
        "assign.static_fraction": 0.2,
        "assign.centre_radius": 1.5,
        "assign.min_positives": 4,
    },
    "soft_scaled": {
        "assign.name": "mutual_guidance_soft",
        "assign.static_fraction": 0.2,
        "assign.centre_radius": 1.5,
        "assign.min_positives": 9,
        "assign.scaled_targets": True,
        "loss.normaliser": "targets",
    },
}


def main() -> None:
    """Run one set, or pool those that were run."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("set", choices=RECIPES)
    add_places(run, seeds=4)
    pool = commands.add_parser("pool")
    pool.add_argument("--work", type=Path, default=Path("assigners"), help="of the trainings")
    options = parser.parse_args()
    if options.command == "run":
        options.work.mkdir(parents=True, exist_ok=True)
        (options.work / f"{options.set}-val.txt").write_text(str(Path(options.val).absolute()))
        train(options.set, RECIPES[options.set], ARMS, options)
    else:
        results = pooled(options.work.absolute())
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        draw(results)
        for row in results["arms"]:
            print(row)


def train(
    run: str,
    recipe: dict[str, Any],
    arms: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train and score all arms with ``jobs.compare``, as the run of this name; return its result.

    ``options`` are those of `add_places`.
    """
    work = options.work.absolute()
    places = {"data.train": options.train, "data.val": options.val, "ray.storage": str(work)}
    tracking = {"tracking.uri": f"sqlite:///{work}/mlflow.db"}
    fields = places | tracking | MACHINE | recipe
    work.mkdir(parents=True, exist_ok=True)
    return run_job(
        "compare",
        *(f"--{field}={value}" for field, value in fields.items()),
        *(f"--arm={arm}: {json.dumps(values)}" for arm, values in arms.items()),
        *("--seeds", str(options.seeds), "--run", run),
    )


def add_places(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Add the options of what is trained and where."""
    parser.add_argument("--train", required=True, help="shard set")
    parser.add_argument("--val", required=True, help="shard set")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--work", type=Path, default=Path("assigners"), help="of the trainings")


def pooled(work: Path) -> dict[str, Any]:
    """Return the comparison of each set, and the arms and pairs of arms averaged over the sets."""
    sets: dict[str, Comparison] = {}
    resampled: dict[str, SeedResampled] = {}
    for number, name in enumerate(RECIPES):
        path = work / name / "comparison.json"
        if not path.exists():
            continue
        sets[name] = Comparison.parse(path.read_bytes(), str(path))
        rows = {row.name: row for row in sets[name].table}
        if set(rows) != set(ARMS) or any(row.failed for row in rows.values()):
            raise SystemExit(f"{path}: arms or trainings are missing; repeat `run {name}`")
        classes = load_manifest((work / f"{name}-val.txt").read_text()).classes
        tables = {
            arm: [load_matches(str(work / name), trial) for trial in row.trials]
            for arm, row in rows.items()
        }
        resampled[name] = seed_bootstrap(tables, len(classes), seed=number)
    if not sets:
        raise SystemExit(f"{work} has no comparison of a set; `run` one of {', '.join(RECIPES)}")
    arms = {arm: [resampled[name].interval(arm).value for name in sets] for arm in ARMS}
    ranked = sorted(ARMS, key=lambda arm: -float(np.mean(arms[arm])))
    pairs = list(combinations(ranked, 2))
    gains = pooled_gains(list(resampled.values()), pairs)
    return {
        "sets": {name: found.model_dump(mode="json") for name, found in sets.items()},
        "spread": {name: resampled[name].spread() for name in sets},
        "arms": [
            {
                "name": arm,
                "mean": float(np.mean(arms[arm])),
                **dict(zip(sets, arms[arm], strict=True)),
            }
            for arm in ranked
        ],
        "pairs": [
            {
                "candidate": a,
                "reference": b,
                "gain": g.value,
                "low": g.low,
                "high": g.high,
                **{name: resampled[name].gain(a, b).value for name in sets},
            }
            for (a, b), g in zip(pairs, gains, strict=True)
        ],
    }


def draw(results: dict[str, Any]) -> None:
    """Draw the AP of every arm on each set: the mean, its interval, and a dot for each seed."""
    ranked = [arm["name"] for arm in results["arms"]]
    figure = Figure(figsize=(2.4 + 2.6 * len(results["sets"]), 1.2 + 0.32 * len(ranked)))
    panels = figure.subplots(1, len(results["sets"]), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, results["sets"].items(), strict=True):
        for row in found["table"]:
            y = ranked.index(row["name"])
            axes.plot([row["low"], row["high"]], [y, y], color="0.6", linewidth=3, zorder=1)
            axes.scatter(row["scores"], [y] * len(row["scores"]), s=10, color="#f58231", zorder=3)
            axes.scatter([row["ap"]], [y], s=36, marker="D", color="#4363d8", zorder=2)
        axes.set_title(f"{name}: {found['images']} images", fontsize=9)
        axes.set_xlabel("AP", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(ranked)), ranked)
    panels[0].invert_yaxis()
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(str(PLOT))


if __name__ == "__main__":
    main()
