"""Send what trainings could not send because no run store answered.

    python -m jobs.tracking sync
    python -m jobs.tracking sync --storage /nfs/runs --tracking-uri http://mlflow:5000

Looks through the runs of a storage and this machine's cache. Sending twice changes nothing, and a
training that still runs is not disturbed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs._cli import make_parser, run_job
from pipeline.config import TrackingConfig
from pipeline.errors import UserError
from pipeline.tracking import resolve_uri, sync


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Send it; returns what was found, run by run."""
    parser = make_parser("tracking", __doc__ or "")
    parser.add_argument("action", choices=("sync",), help="sync: send what waits")
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="the ray.storage of the trainings; default: ./runs",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="where to send everything; default: where each run was to go",
    )
    options = parser.parse_args(argv)
    given = options.tracking_uri
    uri = resolve_uri(TrackingConfig(uri=given)) if given else None
    found = sync(options.storage.absolute(), uri, lambda: resolve_uri(TrackingConfig()))
    for item in found:
        state = "sent" if item.complete else "still waits, see above"
        print(f"{item.run_id}  {item.folder}: {state}", file=sys.stderr)
    if not found:
        print("nothing waits", file=sys.stderr)
    if not all(item.complete for item in found):
        raise UserError("not everything was sent; try again when the store answers")
    return {"runs": [item._asdict() for item in found]}


if __name__ == "__main__":
    run_job(main)
