"""Search over configuration fields and write the best recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.cli.common import (
    RECIPES,
    JobResult,
    add_run_options,
    announced,
    command,
    make_parser,
    run_job,
    run_name,
)
from jobs.train import duration, find_run_page
from pipeline.storage.redact import mask

if TYPE_CHECKING:
    from pipeline.evaluation.postprocessing.settings import BestSettings
    from pipeline.sweep.documents import Statement, Trial


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | JobResult:
    """Run one sweep; return its table, its statement and the path of the best recipe."""
    from pipeline.config import load_config

    parser = make_parser("tune", __doc__ or "")
    add_run_options(parser)
    config, options = load_config(parser, argv, RECIPES)
    name = run_name(options, "tune")
    with announced(config, name):
        from pipeline.sweep import IncompleteSweep, sweep

        failure = ""
        try:
            found = sweep(config, run=name, resume=options.resume)
        except IncompleteSweep as error:
            found, failure = error.done, str(error)
    result = found.as_json()
    result["run_page"] = find_run_page(found.tracking_uri, found.run_id)
    lines = [*trial_table(found.metric, found.trials), *answer(found.statement), *summary(result)]
    print("\n".join(lines))
    if failure:
        print(f"failed: {mask(failure)}", file=sys.stderr)
        return JobResult(result, 1)
    return result


def trial_table(metric: str, trials: Sequence[Trial]) -> list[str]:
    """Return a row per trial, best first; ``-`` for fields that do not matter in a trial."""
    params = sorted({field for trial in trials for field in trial.params})
    others = [name for name in ("ap", "ap50", "ap75") if f"val/{name}" != metric]
    costs = ("epochs", "seconds", "status")
    rows = [[metric, "95% interval", *others, *costs, "post-processing", *params, "trial"]]
    for trial in trials:
        rows.append(
            [
                _number(trial.best),
                _interval(trial.low, trial.high) if metric == f"val/{trial.metric}" else "-",
                *(_number(getattr(trial, name)) for name in others),
                f"{trial.epochs:.1f}",
                "-" if trial.seconds is None else f"{trial.seconds:.0f}",
                trial.status,
                _gain(trial.postprocessing),
                *(_cell(trial.params.get(key, "-")) for key in params),
                trial.name,
            ]
        )
    return _aligned(rows)


def answer(statement: Statement) -> list[str]:
    """Return the confirmed points, best first, with the score of each seed, and the statement."""
    lines = [""]
    if statement.arms:
        seeds = [f"seed {seed}" for seed in statement.arms[0].seeds]
        rows = [[statement.metric, "95% interval", *seeds, "confirmed"]]
        for arm in statement.arms:
            interval = _interval(arm.score.low, arm.score.high)
            rows.append([_number(arm.score.value), interval, *map(_number, arm.scores), arm.name])
        lines += [*_aligned(rows), ""]
    return [*lines, *statement.sentences, ""]


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the last lines: the time, the pages and the next command."""
    return [
        f"time        {duration(result['seconds'])}",
        f"report      {result['report']}",
        f"run page    {result['run_page']}",
        f"next        {command('train')} --config {shlex.quote(result['best_yaml'])}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{_number(low)} to {_number(high)}"


def _gain(found: BestSettings | None) -> str:
    """Return what other settings of post-processing gain, if it is beyond the choice of images."""
    if found is None:
        return "-"
    return f"{found.gain.value:+.4f}" if found.distinguishable else "as is"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_job(main)
