"""Send records that trainings could not send because the run store did not respond.

    python -m jobs.tracking sync
    python -m jobs.tracking sync --storage /nfs/runs --tracking.uri http://mlflow:5000

Searches the runs of a storage and the cache of this machine. Sending twice has no effect, and
trainings that are still running are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli.common import add_tracking_option, make_parser, run_job, tracking_config
from pipeline.errors import UserError


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Send all queued records; return what was found per run."""
    parser = make_parser("tracking", __doc__ or "")
    parser.add_argument(
        "action", choices=("sync",), metavar="COMMAND", help="sync: send queued records"
    )
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="ray.storage of the trainings; default: ./runs",
    )
    add_tracking_option(parser, "the run store of each run")
    options = parser.parse_args(argv)
    from pipeline.config import TrackingConfig
    from pipeline.tracking import resolve_uri, sync

    uri = resolve_uri(tracking_config(options)) if options.tracking_uri else None
    found = sync(options.storage.absolute(), uri, lambda: resolve_uri(TrackingConfig()))
    for item in found:
        state = "sent" if item.complete else "still queued, see above"
        print(f"{item.run_id}  {item.folder}: {state}", file=sys.stderr)
    if not found:
        print("nothing is queued", file=sys.stderr)
    if not all(item.complete for item in found):
        raise UserError("some records were not sent; try again when the run store responds")
    return {"runs": [item._asdict() for item in found]}


if __name__ == "__main__":
    run_job(main)
