"""Train a detector, evaluate it and register a model version."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.cli.common import (
    RECIPES,
    add_run_options,
    announced,
    command,
    is_main,
    make_parser,
    run_job,
    run_name,
)
from pipeline.storage.redact import mask


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one training; return its metrics and URIs."""
    from pipeline.config import load_config

    parser = make_parser("train", __doc__ or "")
    add_run_options(parser)
    config, options = load_config(parser, argv, RECIPES)
    name = run_name(options, "train")
    with announced(config, name):
        from pipeline.training.fit import fit

        result = asdict(fit(config, run=name, resume=options.resume))
    if is_main():
        result["run_page"] = find_run_page(result["tracking_uri"], result["run_id"])
        print("\n".join(summary(result)))
    return result


def find_run_page(tracking_uri: str, run_id: str) -> str:
    """Return `run_page`, with the experiment if a server responds."""
    from pipeline.tracking import experiment_of

    is_server = tracking_uri.startswith("http")
    experiment = experiment_of(tracking_uri, run_id) if is_server else None
    return run_page(tracking_uri, run_id, experiment)


def run_page(tracking_uri: str, run_id: str, experiment_id: str | None = None) -> str:
    """Return the address of the run's page, or for a file the command that starts a server.

    With the experiment it is the page for model training; MLflow would show that for GenAI.
    """
    if tracking_uri.startswith("http"):
        address = re.sub("//[^/@]*@", "//", tracking_uri)  # browsers ask for credentials
        page = f"{mask(address).rstrip('/')}/#"
        if experiment_id is None:
            return f"{page}/runs/{run_id}"
        return f"{page}/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    mlflow = Path(sys.executable).with_name("mlflow")
    server = shlex.join([str(mlflow), "ui", "--backend-store-uri", mask(tracking_uri)])
    return f"MLFLOW_DISABLE_TELEMETRY=true {server}"


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the lines that say where the results are and which command comes next."""
    evaluated = any(name.startswith("val/") for name in result["metrics"])
    kind = "best step" if evaluated else "last step"
    lines = [
        f"run         {result['run']} ({result['run_id']})",
        f"checkpoint  {mask(str(result['checkpoint']))}",
        f"{kind:<12}{result['best_step']} of {result['total_steps']}",
    ]
    for name, value in result["metrics"].items():
        if name.endswith(("/ap", "/ap50", "/ap75")):
            lines.append(f"{name:<12}{value:.4f}")
    for use, names in result["unscored"].items():
        lines.append(f"not scored  data.{use} has no objects of {', '.join(names)}")
    lines.append(f"time        {duration(result['seconds'].get('fit', 0.0))}")
    if result["model_uri"]:
        lines.append(f"model       {result['model_uri']}")
    lines.append(f"run page    {result['run_page']}")
    lines.append(f"next        {next_command(result)}")
    return lines


def next_command(result: Mapping[str, Any]) -> str:
    """Return the command that uses the trained model, or that lists its checkpoints."""
    if not result["model_uri"]:
        return f"{command('checkpoints')} list {shlex.quote(mask(_parent(result['checkpoint'])))}"
    from pipeline.config import TrackingConfig

    words = ["--model", result["model_uri"], "--images", "DIR", "--out", "DIR"]
    if result["tracking_uri"] != TrackingConfig().store_uri():
        words += ["--tracking.uri", mask(result["tracking_uri"])]
    return f"{command('predict')} {shlex.join(words)}"


def _parent(uri: str) -> str:
    """Return the folder of a path or URI; options after ``?`` stay at the end."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rsplit('/', 1)[0]}{mark}{options}"


def duration(seconds: float) -> str:
    """Return a duration in words, such as ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    run_job(main)
