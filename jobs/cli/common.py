"""Shared code of the jobs: option parsing, one-line errors, exit codes, output for machines."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import OutageError, TrainingFailed, TrainingStopped, UserError
from pipeline.storage.redact import mask, mask_output, mask_tree

if TYPE_CHECKING:
    from pipeline.config import Config, TrackingConfig

Main = Callable[[Sequence[str] | None], Mapping[str, Any]]


class JobResult(dict[str, Any]):
    """The result of a job that ends with another exit code than 0."""

    def __init__(self, content: Mapping[str, Any], exit_code: int) -> None:
        super().__init__(content)
        self.exit_code = exit_code


def find_recipes(jobs: Path) -> Path:
    """Return the folder of the recipes, for that of the package `jobs`.

    In a checkout its `configs` is a link to the folder at the top, and a plain file where the file
    system or the archive format has no links. An installed package has a copy.
    """
    packaged = jobs / "configs"
    return packaged if packaged.is_dir() else jobs.parent / "configs"


RECIPES = find_recipes(Path(__file__).parents[1])
# Environment variables that keep colour codes out of a file or a pipe.
PLAIN_OUTPUT = {"NO_COLOR": "1", "RAY_COLOR_PREFIX": "0"}


class JobParser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors of one line that name the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the whole usage."""
        if message.startswith("unrecognized arguments:"):
            given = message.split(":", 1)[1].split()[0].split("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            message = f"unknown option {given}; {hint}"
        raise UserError(message)


def command(job: str) -> str:
    """Return the command that starts a job, in the way in which this process was started."""
    if Path(sys.argv[0]).name == "guidance":
        return f"guidance {job}"
    return f"python -m jobs.{job}"


def make_parser(job: str, description: str) -> JobParser:
    """Return a parser for a job with ``--json``; options cannot be abbreviated."""
    parser = JobParser(
        prog=command(job),
        description=description.replace("``", "").replace("python -m jobs.", command("")),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one final JSON line on stdout and everything else on stderr",
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--run`` and ``--resume``, the options of jobs that can be resumed."""
    parser.add_argument(
        "--run", metavar="NAME", help="name of this run, by which it can be resumed"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: resume an unfinished run of that name if it exists; never: refuse to; "
        "must: fail if it does not exist; default: auto",
    )


def add_class_options(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add ``--classes`` and ``--classes-from``, of which `given_classes` returns the names."""
    named = parser.add_mutually_exclusive_group(required=required)
    named.add_argument("--classes", metavar="A,B,C", help="class names, in this order")
    named.add_argument("--classes-from", metavar="SHARDSET", help="classes of that shard set")


def given_classes(options: argparse.Namespace) -> list[str] | None:
    """Return the class names given by the options, None without. Raises UserError."""
    if options.classes_from:
        from pipeline.data.shards.manifest import load_manifest

        return load_manifest(options.classes_from).classes
    if options.classes is None:
        return None
    names = [name.strip() for name in options.classes.split(",")]
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"--classes {options.classes}: empty or repeated name")
    return names


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and ``--data``: a model, and the shard set to use it on."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="URI",
        help="models:/NAME@champion, models:/NAME/1, or the folder of a run or checkpoint",
    )
    parser.add_argument("--data", required=True, metavar="SHARDSET", help="shard set to use")


def add_tracking_option(parser: argparse.ArgumentParser, unset: str | None = None) -> None:
    """Add ``--tracking.uri``, spelled like the field of a recipe."""
    parser.add_argument(
        "--tracking.uri",
        dest="tracking_uri",
        metavar="URI",
        help="MLflow tracking URI; "
        f"unset: {unset or '$MLFLOW_TRACKING_URI, else SQLite in ./mlflow'}",
    )


def tracking_config(options: argparse.Namespace) -> TrackingConfig:
    """Return the section ``tracking`` with the given ``--tracking.uri``."""
    from pipeline.config import TrackingConfig

    return TrackingConfig(uri=options.tracking_uri)


def run_name(options: argparse.Namespace, default: str) -> str:
    """Return the given name of the run, else the recipe's with the time. Raises UserError."""
    if options.run:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.run):
            raise UserError(f"--run {options.run!r}: use only letters, digits, '.', '_' and '-'")
        return str(options.run)
    if options.resume == "must":
        raise UserError("--resume must needs --run NAME, the run to resume")
    stem = options.config.stem if options.config else default
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


@contextlib.contextmanager
def announced(config: Config, name: str) -> Iterator[None]:
    """Name the run, its storage and its run store on stderr, before anything slow is imported.

    An interruption inside the block says how to resume, since the name may be an automatic one.
    """
    from pipeline.storage.folder import join

    if is_main():
        folder = mask(join(config.ray.storage_uri(), name))
        store = mask(config.tracking.store_uri())
        line = f"run {name}: stored in {folder}, reported to {store}"
        print(line, file=sys.stderr, flush=True)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"to resume, run the same command with --run {name}") from None


def run_job(main: Main, argv: Sequence[str] | None = None) -> None:
    """Run a job and exit with its code.

    0: done, 1: failed, also by an outage, 2: an error of the user (one line), the code of a
    `JobResult`, such as 3 for refused, 130: interrupted, 141: stdout was closed by its reader
    (``| head``), 143: stopped by SIGTERM after saving. With ``--json`` stdout holds exactly one
    line, whatever the libraries underneath print. Secrets are masked in the result, in errors and
    in log records.
    """
    mask_output()
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    _keep_colours_out_of_files()
    try:
        with _stdout_to_stderr() if as_json else contextlib.nullcontext():
            result = main(arguments)
        if as_json and is_main():
            print(json.dumps(mask_tree(result), default=lambda value: mask(str(value))))
        if sys.stdout is not None:  # None if it was closed from the start
            sys.stdout.flush()
        if isinstance(result, JobResult):
            sys.exit(result.exit_code)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(141)
    except UserError as error:
        for line in mask(str(error)).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except (TrainingFailed, OutageError) as error:
        print(f"failed: {mask(str(error))}", file=sys.stderr)
        sys.exit(1)
    except TrainingStopped as error:
        print(f"stopped: {mask(str(error))}", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)


def is_main() -> bool:
    """Return whether this process prints results: under torchrun only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def _keep_colours_out_of_files() -> None:
    """Set the environment so that output to a file or a pipe has no ANSI codes."""
    streams = (stream for stream in (sys.stdout, sys.stderr) if stream is not None)
    if not all(stream.isatty() for stream in streams):
        for name, value in PLAIN_OUTPUT.items():
            os.environ.setdefault(name, value)


def _stdout_is_closed() -> bool:
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):
        return False
    # Discard what is still buffered, which Python would write when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    # Redirects the file descriptor, so that child processes and C libraries follow.
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
