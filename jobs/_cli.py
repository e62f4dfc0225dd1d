"""What all jobs share: one-line errors, exit codes, and figures for machines."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from pipeline.errors import TrainingFailed, TrainingStopped, UserError

Main = Callable[[Sequence[str] | None], Mapping[str, Any]]


class JobParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are UserErrors of one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        if message.startswith("unrecognized arguments:"):
            given = message.split(":", 1)[1].split()[0].split("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            message = f"unknown option {given}; {hint}"
        raise UserError(message)


def make_parser(module: str, description: str) -> JobParser:
    """A parser for ``python -m jobs.<module>`` with ``--json``; abbreviations are refused."""
    parser = JobParser(
        prog=f"python -m jobs.{module}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one final JSON line on stdout, everything else on stderr",
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of jobs that can be resumed: ``--run`` and ``--resume``."""
    parser.add_argument(
        "--run", metavar="NAME", help="name of this run and the key to resume it by"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="go on with an unfinished run of that name if there is one (auto), refuse to (never), "
        "or insist on it (must); default: auto",
    )


def run_name(options: argparse.Namespace, default: str) -> str:
    """The run's name: as given, else the recipe's with the time. Raises UserError."""
    if options.run:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.run):
            raise UserError(f"--run {options.run!r}: use letters, digits, '.', '_' and '-' alone")
        return str(options.run)
    if options.resume == "must":
        raise UserError("--resume must needs --run NAME, the run to go on with")
    stem = options.config.stem if options.config else default
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def run_job(main: Main, argv: Sequence[str] | None = None) -> None:
    """Run a job and exit: 0 done, 1 failed, 2 the user's mistake (one line), 130 interrupted,
    141 nobody reads stdout any more (``| head``), 143 stopped by SIGTERM after saving.

    With ``--json`` stdout holds exactly one line, whatever the libraries underneath print.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        with _stdout_to_stderr() if as_json else contextlib.nullcontext():
            result = main(arguments)
        if as_json and is_main():
            print(json.dumps(result, default=str))
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(141)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except TrainingFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def is_main() -> bool:
    """Whether this process speaks for all: false in the further ones that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _stdout_is_closed() -> bool:
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):
        return False
    # What is still buffered goes nowhere when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


@contextlib.contextmanager
def _stdout_to_stderr() -> Any:
    # At the level of file descriptors, so that child processes and C libraries follow.
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
