"""Register a checkpoint of a finished or stopped training as a model version.

    python -m jobs.register --run runs/first --name my-detector
    python -m jobs.register --run runs/first/step-00000400 --name my-detector

The folder of a run gives its checkpoint of the highest score on data.val, or the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jobs.cli.common import add_tracking_option, command, make_parser, run_job, tracking_config


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Register the checkpoint; return the version."""
    parser = make_parser("register", __doc__ or "")
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="folder of a run or of a checkpoint"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="registered model")
    add_tracking_option(parser)
    options = parser.parse_args(argv)
    from pipeline.tracking import resolve_uri
    from pipeline.training.register_checkpoint import register_checkpoint

    uri = resolve_uri(tracking_config(options))
    version = register_checkpoint(uri, options.run, options.name)
    print(f"registered: {version.model_uri}", file=sys.stderr)
    promote = f"{command('promote')} {version.name} --version {version.version} --data SHARDSET"
    print(f"next: {promote}", file=sys.stderr)
    return {**version._asdict(), "tracking_uri": uri}


if __name__ == "__main__":
    run_job(main)
