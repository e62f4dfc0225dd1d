"""Search over configuration fields and write the best recipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs._cli import RECIPES, add_run_options, announced, command, make_parser, run_job, run_name
from jobs.train import duration, find_run_page


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one sweep; return its table and the path of the best recipe."""
    from pipeline.config import load_config

    parser = make_parser("tune", __doc__ or "")
    add_run_options(parser)
    config, options = load_config(parser, argv, RECIPES)
    name = run_name(options, "tune")
    with announced(config, name):
        from pipeline.sweep import sweep

        result = asdict(sweep(config, run=name, resume=options.resume))
    result["run_page"] = find_run_page(result["tracking_uri"], result["run_id"])
    print("\n".join([*table(result), *summary(result)]))
    return result


def table(result: Mapping[str, Any]) -> list[str]:
    """Return a row per trial, best first; ``-`` for fields that do not matter in a trial."""
    params = sorted({field for trial in result["trials"] for field in trial["params"]})
    rows = [[result["metric"], "epochs", "status", *params, "trial"]]
    for trial in result["trials"]:
        best = "-" if trial["best"] is None else f"{trial['best']:.4f}"
        values = [_cell(trial["params"].get(key, "-")) for key in params]
        rows.append([best, f"{trial['epochs']:.1f}", trial["status"], *values, trial["name"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: the time, the run's page and the next command."""
    return [
        f"time        {duration(result['seconds'])}",
        f"run page    {result['run_page']}",
        f"next        {command('train')} --config {shlex.quote(result['best_yaml'])}",
    ]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_job(main)
