"""Compare variants of a recipe: like for like, on several seeds, with intervals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.cli.common import (
    RECIPES,
    JobResult,
    add_run_options,
    announced,
    make_parser,
    run_job,
    run_name,
)
from jobs.train import duration, find_run_page
from pipeline.storage.redact import mask


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one comparison; return its table, its pairs and the path of its page."""
    from pipeline.config import load_config

    parser = make_parser("compare", __doc__ or "")
    _add_options(parser)
    add_run_options(parser)
    config, options = load_config(parser, argv, RECIPES)
    name = run_name(options, "compare")
    from pipeline.comparison.arms import build_arms, parse_arm, parse_vary

    given = [parse_arm(text) for text in options.arm]
    arms = build_arms(config, given, [parse_vary(text) for text in options.vary])
    with announced(config, name):
        from pipeline.comparison.compare import IncompleteComparison, compare

        failure = ""
        try:
            done = compare(
                config,
                run=name,
                arms=arms,
                seeds=options.seeds,
                folds=options.folds,
                resume=options.resume,
            )
        except IncompleteComparison as error:
            done, failure = error.done, str(error)
    result = asdict(done)
    result["run_page"] = find_run_page(done.tracking_uri, done.run_id)
    print("\n".join([result.pop("text"), "", *summary(result)]))
    if failure:
        print(f"failed: {mask(failure)}", file=sys.stderr)
        return JobResult(result, 1)
    return result


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the lines below the statement: the time, the page and the run."""
    return [
        f"time        {duration(result['seconds'])}",
        f"report      {result['report']}",
        f"run page    {result['run_page']}",
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=A,B",
        help="field of the recipe and its values, as YAML; repeated: all combinations",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="'NAME: {FIELD: VALUE}'",
        help="an arm with several fields, as YAML, {} for the recipe itself; repeated: one each",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="trainings of each arm; default: 3"
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="K",
        help="cross-validate: split data.train in K parts, and score each by a training on the "
        "others; default: score data.val",
    )


if __name__ == "__main__":
    run_job(main)
