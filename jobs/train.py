"""Train a detector: ``python -m jobs.train --config configs/bccd.yaml``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs._cli import add_run_options, is_main, make_parser, run_job, run_name
from pipeline.config import load_config
from pipeline.storage.redact import mask


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one training; returns its figures and URIs."""
    parser = make_parser("train", "Train a detector, evaluate it and register a model version.")
    add_run_options(parser)
    config, options = load_config(parser, argv)
    name = run_name(options, "train")
    from pipeline.training.fit import fit

    result = fit(config, run=name, resume=options.resume)
    if is_main():
        for line in summary(asdict(result)):
            print(line)
    return asdict(result)


def look_at(tracking_uri: str) -> str:
    """How to see the run: the server's address, or the command that starts one for a file."""
    if tracking_uri.startswith("http"):
        return mask(tracking_uri)
    mlflow = Path(sys.executable).with_name("mlflow")
    command = shlex.join([str(mlflow), "ui", "--backend-store-uri", mask(tracking_uri)])
    return f"MLFLOW_DISABLE_TELEMETRY=true {command}"


def summary(result: dict[str, Any]) -> list[str]:
    """Where everything is, one line each."""
    lines = [
        f"run         {result['run']} ({result['run_id']})",
        f"checkpoint  {result['checkpoint']}",
    ]
    for name, value in result["metrics"].items():
        if name.endswith(("/ap", "/ap50", "/ap75")):
            lines.append(f"{name:<12}{value:.4f}")
    if result["model_uri"]:
        lines.append(f"model       {result['model_uri']}")
    lines.append(f"look        {look_at(result['tracking_uri'])}")
    return lines


if __name__ == "__main__":
    run_job(main)
