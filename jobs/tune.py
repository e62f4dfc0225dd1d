"""Search over any fields: ``python -m jobs.tune --config configs/sweeps/smoke.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jobs._cli import add_run_options, make_parser, run_job, run_name
from pipeline.config import load_config


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one sweep; returns its table and where the best recipe is."""
    parser = make_parser("tune", "Search over fields of a training and write the best recipe.")
    add_run_options(parser)
    config, options = load_config(parser, argv)
    name = run_name(options, "tune")
    from pipeline.sweep import sweep

    result = asdict(sweep(config, run=name, resume=options.resume))
    for line in table(result):
        print(line)
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The trials, best first, and the next command."""
    params = list(result["trials"][0]["params"])
    rows = [[result["metric"], "epochs", "status", *params, "trial"]]
    for trial in result["trials"]:
        best = "-" if trial["best"] is None else f"{trial['best']:.4f}"
        values = [_cell(trial["params"][key]) for key in params]
        rows.append([best, f"{trial['epochs']:.1f}", trial["status"], *values, trial["name"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [*lines, f"train the best:  python -m jobs.train --config {result['best_yaml']}"]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_job(main)
