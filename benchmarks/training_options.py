"""What do freezing, the optimizer and augmentation add to what `guidance start` proposes?

    python -m benchmarks.training_options SET --train SHARDS --val SHARDS [--seeds 3] [--work DIR]

Each arm changes one thing of the proposal, and is scored on validation images. The schedule is that
of `benchmarks.assigners` for the set, a third of the proposal's: short trainings favour freezing
and little augmentation. The constants of pipeline/start/rules.py and of
pipeline/pretrained/freezing.py follow from it. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.assigners import RECIPES, add_places, train
from pipeline.start import rules

RESULTS = Path(__file__).parent / "results" / "training_options.json"
PROPOSED = {
    "assign.name": rules.ASSIGNER,
    **rules.OPTIMIZER_PRETRAINED,
    **rules.AUGMENTATION,
}
ARMS: dict[str, dict[str, Any]] = {
    "proposed": {},
    "sgd": {"train.optimizer": "sgd"},
    "nothing frozen": {"model.freeze_stages": 0},
    "4 stages frozen": {"model.freeze_stages": 4},
    "no augmentation but flips": dict.fromkeys(rules.AUGMENTATION, 0.0),
    "rotate, scale, shear": {"data.rotate": 10, "data.scale": 0.2, "data.shear": 5},
    "mosaic but for the last third": {"data.mosaic": 0.5, "data.close_mosaic": 0.33},
}
# Classes of cards are about equally frequent; those of cells are not.
ARMS_OF_SET: dict[str, dict[str, dict[str, Any]]] = {
    "bccd": {
        "class weights": {"loss.class_weights": {"Platelets": 2.0, "WBC": 1.5}},
        "repeat factors": {"data.repeat_threshold": 1.0},
    },
    "cards": {},
}


def recipe(name: str) -> dict[str, Any]:
    """Return the recipe of a set: what is proposed, at the schedule of the other benchmark."""
    fields = {**RECIPES[name], **PROPOSED}
    del fields["model.freeze_stages"]  # by the rule
    return fields


def arms(name: str) -> dict[str, dict[str, Any]]:
    """Return the arms of a set."""
    return {**ARMS, **ARMS_OF_SET[name]}


def main() -> None:
    """Compare the arms on one set, and add its result to those of the others."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("set", choices=ARMS_OF_SET)
    add_places(parser, seeds=3)
    options = parser.parse_args()
    name = options.set
    found = train(f"options-{name}", recipe(name), arms(name), options)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {key: found[key] for key in ("table", "pairs", "sentences")}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
