"""Make a registered version the champion, or return to the previous one.

    python -m jobs.promote NAME --version 3
    python -m jobs.promote NAME --rollback

Moves the alias ``champion``; the version that had it becomes ``previous``. The model's tags
``promotion.*`` record who moved it, when, and from which version.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs._cli import add_tracking_option, make_parser, run_job, tracking_config
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.registry import Promotion


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Move the alias and return the resulting aliases."""
    parser = make_parser("promote", __doc__ or "")
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--version", type=int, metavar="V", help="version to make the champion")
    parser.add_argument("--rollback", action="store_true", help="swap champion and previous")
    add_tracking_option(parser)
    options = parser.parse_args(argv)
    if (options.version is None) != options.rollback:
        raise UserError("give either --version V or --rollback")
    from pipeline.registry import promote, rollback
    from pipeline.tracking import resolve_uri

    uri = resolve_uri(tracking_config(options))
    if options.rollback:
        result = rollback(uri, options.name)
    else:
        result = promote(uri, options.name, options.version)
    print(_sentence(result), file=sys.stderr)
    model_uri = f"models:/{result.name}@champion"
    return {**result._asdict(), "model_uri": model_uri, "tracking_uri": uri}


def _sentence(result: Promotion) -> str:
    previous = f"previous: version {result.previous}" if result.previous else "no previous version"
    if not result.changed:
        return f"{result.name}: version {result.champion} is already the champion ({previous})"
    return f"{result.name}: version {result.champion} is now the champion ({previous})"


if __name__ == "__main__":
    run_job(main)
