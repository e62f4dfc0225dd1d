"""Run the whole chain on generated images: prepare, train, register, promote, evaluate, predict."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import evaluate, predict, prepare, promote, train
from jobs.cli.common import RECIPES, command, make_parser, run_job
from pipeline.errors import TrainingFailed

RECIPE = RECIPES / "shapes.yaml"
SPLITS = {"train": 400, "val": 80, "test": 80}  # images


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run every job once on generated images; write the results to ``OUT/results.json`` too."""
    parser = make_parser("demo", f"{__doc__} Takes minutes.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for all results"
    )
    options = parser.parse_args(argv)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{out}/mlflow/mlflow.db"
    clock = _Stages()

    clock.stage("prepare", "generate images of shapes and write them as shards")
    for split, count in SPLITS.items():
        prepare.convert(
            [
                *("--source=shapes", f"--split={split}", f"--count={count}"),
                *(f"--out={_shards(out, split)}", "--overwrite"),
            ]
        )
    clock.stage("train", "train on 2 Ray workers, evaluate, log and register in MLflow")
    trained = train.main(
        [
            *(f"--config={RECIPE}", f"--run=demo-{time.strftime('%Y%m%d-%H%M%S')}"),
            *(f"--data.{split}={_shards(out, split)}" for split in SPLITS),
            *(f"--tracking.uri={uri}", f"--ray.storage={out}/runs"),
        ]
    )
    clock.stage("promote", "let the gate decide on the held-out images")
    if trained["model_uri"] is None:
        raise TrainingFailed("the demo's training has learned nothing; its output says why")
    name, version = trained["model_uri"].removeprefix("models:/").split("/")
    decided = promote.main(
        [
            *(name, f"--version={version}", f"--data={_shards(out, 'test')}"),
            f"--tracking.uri={uri}",
        ]
    )
    clock.stage("evaluate", "write the page of the model on the held-out images")
    model = [f"--model={trained['model_uri']}", f"--tracking.uri={uri}"]
    evaluated = evaluate.main([*model, f"--data={_shards(out, 'test')}", f"--out={out}/evaluation"])
    clock.stage("predict", "load the registered version and predict on held-out images")
    images = _held_out(out, count=16)
    predicted = predict.main([*model, f"--images={images}", f"--out={out}/predictions"])
    clock.stage("", "done")
    results = _results(out, uri, clock.seconds, trained, decided, evaluated, predicted)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for line in _summary(results):
        print(line)
    return results


class _Stages:
    """Prints the stages of the demo and measures their time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", time.monotonic()

    def stage(self, name: str, what: str) -> None:
        now = time.monotonic()
        if self._name:
            self.seconds[self._name] = round(now - self._started, 1)
        self._name, self._started = name, now
        print(f"== {name or 'demo'}: {what}", file=sys.stderr, flush=True)


def _shards(out: Path, split: str) -> Path:
    return out / "shards" / f"shapes-{split}"


def _held_out(out: Path, count: int) -> Path:
    """Write the first test images as files, as a user's own images would be."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    from pipeline.data.shards.reader import ShardSet

    shards = ShardSet(_shards(out, "test"))
    for index in range(min(count, len(shards))):
        (folder / f"image-{index:03d}.png").write_bytes(shards.read(index).image)
    return folder


def _results(
    out: Path,
    uri: str,
    seconds: dict[str, float],
    trained: dict[str, Any],
    decided: Mapping[str, Any],
    evaluated: dict[str, Any],
    predicted: dict[str, Any],
) -> dict[str, Any]:
    metrics = trained["metrics"]
    return {
        **{name: round(metrics[f"test/{name}"], 4) for name in ("ap", "ap50", "ap75")},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "model_uri": trained["model_uri"],
        "promotion": {name: decided[name] for name in ("verdict", "reasons", "champion", "record")},
        "run_id": trained["run_id"],
        "run_page": trained["run_page"],
        "tracking_uri": uri,
        "paths": {
            "shards": str(out / "shards"),
            "checkpoint": trained["checkpoint"],
            "evaluation": evaluated["files"]["page"],
            "detections": predicted["detections_file"],
            "pictures": predicted["pictures"],
            "results": str(out / "results.json"),
        },
    }


def _summary(results: dict[str, Any]) -> list[str]:
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    return [
        "",
        f"AP on held-out images   AP {results['ap']:.3f}   AP50 {results['ap50']:.3f}   "
        f"AP75 {results['ap75']:.3f}   ({seconds})",
        f"page of the evaluation  {results['paths']['evaluation']}",
        f"pictures of detections  {results['paths']['pictures']}",
        f"registered model        {results['model_uri']}: {results['promotion']['verdict']}",
        f"page of the run         {results['run_page']}",
        f"your own data           {command('start')} DIR",
    ]


if __name__ == "__main__":
    run_job(main)
