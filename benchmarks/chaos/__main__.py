"""Break a training in every way that docs/faults.md lists, and compare it with an undisturbed one.

    python -m benchmarks.chaos                                # 10 minutes
    python -m benchmarks.chaos --minutes 30 --seed 7 --json

Two ranks on two nodes of a Ray cluster train from shards on an S3 server, and store checkpoints on
it, behind one faulty proxy; an MLflow server is behind another. The training is first run
undisturbed. Then it is run under a random sequence of faults, which a seed determines, for as long
as requested. If its driver ends before the training is finished, the same command is run again.
Exit code 1 if a check at the end does not hold.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.chaos import checks, training
from benchmarks.chaos.faults import Target
from benchmarks.chaos.nodes import NODES, Nodes
from benchmarks.chaos.plan import Injector
from benchmarks.chaos.proxy import FaultyProxy
from benchmarks.chaos.report import summary, table
from benchmarks.chaos.service_faults import KINDS  # those of processes too
from benchmarks.chaos.services import Objects, mlflow_server, s3_server

STEPS_PER_MINUTE, MIN_STEPS = 16, 30
END_SECONDS = 600.0  # for the training to end after the last fault
IMAGES = {"train": training.IMAGES, "val": 6, "test": 6}


class Bench:
    """The servers, proxies and nodes, in a temporary folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.s3_server, self.mlflow_server = s3_server(folder), mlflow_server(folder)
        self.s3 = FaultyProxy(self.s3_server.target, seed, "/step-")
        self.mlflow = FaultyProxy(self.mlflow_server.target, seed + 1)
        self.nodes: Nodes | None = None

    def start(self) -> None:
        """Start everything and upload the data."""
        os.environ.update(
            {
                "AWS_ACCESS_KEY_ID": "chaos",
                "AWS_SECRET_ACCESS_KEY": "chaos",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": self.s3.uri,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": str(self.folder / "none"),
                "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
        )
        self.s3_server.start()
        self.mlflow_server.start()
        self.objects = Objects(self.s3_server.uri)
        self.objects.create_bucket()
        self.nodes = Nodes(self.folder)
        from jobs import prepare  # imports Ray, which reads its environment only then

        for number, (split, count) in enumerate(IMAGES.items()):
            out = self.folder / "data" / split
            words = ["--source", "shapes", "--split", split, "--size", "64", "--seed", str(number)]
            words += ["--count", str(count), "--shard-samples", "8", "--out", str(out)]
            with contextlib.redirect_stdout(io.StringIO()):
                prepare.main(words)
            self.objects.upload_folder(out, f"data/{split}")

    def training(self, name: str, steps: int, registered: bool) -> training.Training:
        """Return a training, not started yet."""
        assert self.nodes
        services = {"s3": self.s3.address, "mlflow": self.mlflow.uri, "ray": self.nodes.address}
        tree = training.recipe(services, name, steps, registered)
        driver = self.nodes.environment("driver")
        return training.Training(self.folder, tree, self.objects, driver)

    def stop_nodes(self) -> None:
        """Stop the cluster."""
        if self.nodes is not None:
            self.nodes.close()
            self.nodes = None

    def close(self) -> None:
        """Stop everything."""
        self.stop_nodes()
        for proxy in (self.s3, self.mlflow):
            proxy.close()
        for server in (self.s3_server, self.mlflow_server):
            server.kill()


def run(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Run both trainings and the checks; return the results."""
    began = time.monotonic()

    def report(text: str) -> None:
        minutes, seconds = divmod(time.monotonic() - began, 60)
        print(f"{minutes:02.0f}:{seconds:02.0f} {text}", file=sys.stderr, flush=True)

    steps = max(MIN_STEPS, round(STEPS_PER_MINUTE * options.minutes))
    report("starting the servers and the cluster")
    bench.start()
    assert bench.nodes
    nodes = bench.nodes
    report(f"training undisturbed for {steps} steps")
    undisturbed = bench.training("undisturbed", steps, registered=False)
    undisturbed.start(report)
    start, first_checkpoint = time.monotonic(), 0.0
    while not undisturbed.join(0.5):
        if not first_checkpoint and undisturbed.step():
            first_checkpoint = time.monotonic() - start
        if undisturbed.attempts and undisturbed.result is None:
            undisturbed.end()
            raise SystemExit(f"the undisturbed training failed: {undisturbed.attempts[0].line}")
    disturbed = bench.training("disturbed", steps, registered=True)
    target = Target(
        disturbed,
        nodes,
        bench.s3,
        bench.mlflow,
        bench.mlflow_server,
        bench.objects,
        bench.folder,
        random.Random(options.seed),
        0.3 if options.minutes > 3 else 0.0,
    )
    injector = Injector(target, options.kinds, options.seed, options.gap, report)
    start = time.monotonic()
    disturbed.start(report)
    injector.run(60.0 * options.minutes, steps, first_checkpoint)
    report("no more faults; waiting for the end of the training")
    until = time.monotonic() + END_SECONDS
    while not disturbed.join(0.5) and time.monotonic() < until:
        injector.follow()
    injector.follow()
    seconds = round(time.monotonic() - start, 1)
    disturbed.end()
    names = ["driver", "second-driver", *(f"node{number}" for number in range(NODES))]
    machines = {name: nodes.environment(name) for name in names}
    bench.stop_nodes()
    sent = training.sync(machines, bench.mlflow.uri, bench.folder)
    found = [
        *checks.check_result(undisturbed, disturbed),
        *checks.check_tracking(bench.mlflow_server.uri, undisturbed, disturbed),
        checks.Check(
            f"queued records of {len(sent)} machines were sent by jobs.tracking sync",
            "; ".join(f"{name}: exit code {code}" for name, code in sent.items() if code),
        ),
    ]
    found.append(checks.check_objects(bench.objects, disturbed))
    uploads = len(bench.objects.unfinished_uploads())
    for server in (bench.s3_server, bench.mlflow_server):
        server.kill()
    found += checks.check_remains(bench.folder)
    found.append(checks.Check("this program had no error", "\n".join(injector.errors)))
    return {
        "seed": options.seed,
        "minutes": options.minutes,
        "steps": steps,
        "seconds_undisturbed": undisturbed.attempts[-1].seconds,
        "seconds_disturbed": seconds,
        "driver_exit_codes": dict(Counter(str(one.code) for one in disturbed.attempts)),
        "faults": summary(injector.faults),
        "requests_broken": {
            "s3": dict(bench.s3.broken),
            "mlflow": dict(bench.mlflow.broken),
        },
        "unfinished_uploads": uploads,
        "checks": found,
        "passed": not checks.failed(found),
    }


def main() -> None:
    """Run, print the results and exit with code 1 if a check does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to inject faults")
    parser.add_argument("--seed", type=int, default=0, help="of the sequence of faults")
    parser.add_argument("--gap", type=float, default=12.0, help="mean seconds between two faults")
    parser.add_argument(
        "--kinds",
        type=lambda text: text.split(","),
        default=sorted(KINDS),
        help=f"faults to inject, separated by commas; default: {','.join(sorted(KINDS))}",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    options = parser.parse_args()
    if unknown := set(options.kinds) - KINDS.keys():
        parser.error(f"--kinds: unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    # Short, since Ray makes Unix sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops everything, below
    bench = Bench(folder, options.seed)
    try:
        result = run(bench, options)
    finally:
        bench.close()
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(table(result), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(result))
    if options.keep or not result["passed"]:
        print(f"logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
