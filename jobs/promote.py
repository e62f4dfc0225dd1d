"""Make a registered version the champion, or go back to the one before.

    python -m jobs.promote NAME --version 3
    python -m jobs.promote NAME --rollback

The alias ``champion`` moves and the version that had it becomes ``previous``. Who did it, when and
from which version is kept in the model's tags ``promotion.*``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jobs._cli import make_parser, run_job
from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.registry import Promotion, promote, rollback
from pipeline.tracking import mask, resolve_uri


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Move the alias; returns what the aliases are afterwards."""
    parser = make_parser("promote", __doc__ or "")
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--version", type=int, metavar="V", help="version to make the champion")
    parser.add_argument("--rollback", action="store_true", help="swap champion and previous")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="default: $MLFLOW_TRACKING_URI, else ./mlflow"
    )
    options = parser.parse_args(argv)
    if (options.version is None) != options.rollback:
        raise UserError("give either --version V or --rollback")
    uri = resolve_uri(TrackingConfig(uri=options.tracking_uri))
    if options.rollback:
        result = rollback(uri, options.name)
    else:
        result = promote(uri, options.name, options.version)
    print(_sentence(result), file=sys.stderr)
    model_uri = f"models:/{result.name}@champion"
    return {**result._asdict(), "model_uri": model_uri, "tracking_uri": mask(uri)}


def _sentence(result: Promotion) -> str:
    previous = f"previous: version {result.previous}" if result.previous else "no previous version"
    if not result.changed:
        return f"{result.name}: version {result.champion} is the champion already ({previous})"
    return f"{result.name}: version {result.champion} is now the champion ({previous})"


if __name__ == "__main__":
    run_job(main)
