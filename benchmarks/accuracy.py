"""How accurate is what `guidance start` proposes, and what do its starting weights add?

    python -m benchmarks.accuracy --data DIR [--sets bccd cards] [--seeds 3] [--work DIR]

DIR has a folder of labelled images per set. For each, `jobs.start` proposes a recipe without any
further option. `jobs.compare` trains it on some seeds, and if it has starting weights also from
random ones; on blood cells also the settings of the recipe `bccd`, and the proposal cut to their
time. They are scored once, at the end of their schedule, on the test part of the set. It selects
nothing here and chose no rule of `jobs.start`; but the recipe `bccd` was once chosen on it, which
flatters that arm. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, read_recipe

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "accuracy.json"
SETS = ("bccd", "cards", "coco", "mini")
RANDOM_WEIGHTS = {"model.init": None, "model.freeze_stages": 0}
# Where data and results are, and what no score depends on.
PLACES = {"data.train", "data.val", "data.test", "data.loader_workers"}
UNSCORED = {"train.checkpoint_every", "train.keep_checkpoints", "train.log_every"}
# Trainings of a comparison take a core each.
MACHINE: dict[str, Any] = {
    "ray.workers": 1,
    "ray.cpus_per_worker": 0.9,
    "ray.threads_per_worker": 1,
    "data.loader_workers": 0,
    "evaluate.pictures": 0,
}


def main() -> None:
    """Propose, train and score for every set; write the results after each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per set")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("accuracy"), help="of the trainings")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.sets:
        work = options.work.absolute() / name
        results[name] = measure(name, options.data.absolute() / name, work, options.seeds)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measure(name: str, data: Path, work: Path, seeds: int) -> dict[str, Any]:
    """Return the proposal for a set, and the comparison of its arms on the test part."""
    work.mkdir(parents=True, exist_ok=True)
    tracking = ("--tracking.uri", f"sqlite:///{work}/mlflow.db")
    started = run_job("start", str(data), "--out", str(work), *tracking)
    if "test" not in started["sets"]:
        raise SystemExit(f"{data} has no test part")
    recipe = Config.from_dict(read_recipe(Path(started["recipe"])))
    # In passes of as many images as a worker of the recipe has, since assigners see one at a time.
    share = math.ceil(recipe.train.batch_size / recipe.ray.workers)
    # The time of a step is that of all `data.sizes` only over many steps.
    machine = {**MACHINE, "train.micro_batch": share, "train.log_every": 50}
    fixed = (
        *("--config", started["recipe"], "--data.val", started["sets"]["test"], *tracking),
        *(f"--{field}={value}" for field, value in machine.items()),
        *("--ray.storage", str(work / "runs"), "--run", f"accuracy-{name}", "--seeds", str(seeds)),
    )

    def compare(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
        given = (f"--arm={arm}: {json.dumps(fields)}" for arm, fields in arms.items())
        return run_job("compare", *fixed, *given)

    arms: dict[str, dict[str, Any]] = {"start": {}}
    if recipe.model.init:
        arms["random weights"] = RANDOM_WEIGHTS
    if name == "bccd":
        other = Config.from_dict(read_recipe(ROOT / "configs" / "bccd.yaml"))
        if other.train.batch_size != recipe.train.batch_size:
            raise SystemExit(
                "equal epochs are equal steps only with the batch of configs/bccd.yaml"
            )
        arms["bccd.yaml"] = changed_fields(recipe, other)
        step = {row["name"]: row["seconds_per_step"] for row in compare(arms)["table"]}
        epochs = round(step["bccd.yaml"] * other.train.epochs / step["start"])
        if epochs < recipe.train.epochs:
            arms["start, as long as bccd.yaml"] = {"train.epochs": epochs}
    found = compare(arms)
    return {
        "samples": started["samples"],
        "recipe": yaml.safe_load(Path(started["recipe"]).read_text()),
        "seconds": started["seconds"],
        **{key: found[key] for key in ("table", "pairs", "sentences")},
    }


def changed_fields(recipe: Config, other: Config) -> dict[str, Any]:
    """Return the fields of network, data and training that turn one recipe into another."""
    before, after = (item.model_dump(mode="json") for item in (recipe, other))
    return {
        f"{section}.{name}": value
        for section in ("data", "model", "assign", "loss", "train")
        for name, value in after[section].items()
        if value != before[section][name] and f"{section}.{name}" not in PLACES | UNSCORED
    }


def run_job(name: str, *words: str) -> dict[str, Any]:
    """Run a job of this tree, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", "--json", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"jobs.{name} has ended with exit code {done.returncode}; see above")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
