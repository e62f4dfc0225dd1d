"""The command ``doctor`` of the job ``shards``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli.common import RECIPES, JobResult, make_parser

if TYPE_CHECKING:
    from pipeline.reports.doctor.examine import Diagnosis


def doctor(argv: Sequence[str]) -> dict[str, Any]:
    """Print what in a set will hurt a training, and optionally set anchors that fit it."""
    from pipeline.config import load_config

    parser = make_parser(
        "shards doctor",
        "Find what in a shard set will hurt a training with this configuration, by severity, each "
        "with its remedy.\nReads annotations, not images. The exit code is 1 if there are errors.",
    )
    add = parser.add_argument
    add("uri", metavar="URI", help="folder or address of the shard set to train on")
    add(
        "--compare-with",
        action="append",
        default=[],
        metavar="SHARDSET",
        help="another split, such as the one for data.val; may be repeated",
    )
    add(
        "--anchors",
        choices=("fit",),
        help="fit: set anchors that fit the set in the recipe of --config; without one, print them",
    )
    config, options = load_config(parser, argv, RECIPES, ("data", "model"))
    from pipeline.reports.doctor.examine import as_dict, examine, format_text

    diagnosis = examine(options.uri, config, options.compare_with)
    print(format_text(diagnosis))
    result = as_dict(diagnosis)
    if options.anchors:
        # An included recipe that was named, not given as a file, is not the user's to change.
        own = any(Path(word.removeprefix("--config=")) == options.config for word in argv)
        result["recipe"] = _set_anchors(diagnosis, options.config if own else None)
    return JobResult(result, 1) if result["errors"] else result


def _set_anchors(diagnosis: Diagnosis, recipe: Path | None) -> str | None:
    """Write the fitted anchors to the recipe, or print them; return the path if it was written."""
    from pipeline.reports.doctor.recipe import anchor_lines, write_anchors

    if diagnosis.fitted is None:
        print("\nno other anchors fit clearly more objects; nothing was changed")
        return None
    shapes = diagnosis.fitted.shapes
    if recipe is not None:
        write_anchors(recipe, shapes)
        print(f"\nanchors set in {recipe}")
        return str(recipe.absolute())
    print("\n".join(["\nadd to your recipe:", *anchor_lines(shapes)]))
    return None
