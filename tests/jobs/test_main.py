"""The list of jobs, and the command of an installed package."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import JOBS

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_every_job_module_is_listed() -> None:
    modules = {path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem[0] != "_"}
    assert set(JOBS) == modules


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_main_lists_the_jobs_with_a_line_each(argv: tuple[str, ...]) -> None:
    done = run("-m", "jobs", *argv)
    assert done.returncode == 0
    for name, text in JOBS.items():
        assert any(line.split() == [name, *text.split()] for line in done.stdout.splitlines())


def test_unknown_job_lists_the_jobs_nearest_first() -> None:
    done = run("-m", "jobs", "trian", "--config", "x.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    first, second, *rest = done.stderr.splitlines()
    assert first == "error: unknown job 'trian'; the jobs are:"
    assert second.split()[0] == "train"
    assert len(rest) == len(JOBS)  # the other jobs, and how to get help


def test_main_passes_arguments_and_exit_code_of_the_job() -> None:
    done = run("-m", "jobs", "train", "--train.epoch", "3")
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --train.epoch; did you mean --train.epochs?\n"


def test_help_names_the_command_that_was_used() -> None:
    code = "import sys; sys.argv = ['/venv/bin/guidance', 'promote', '--help']"
    done = run("-c", f"{code}; from jobs.__main__ import main; main()")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: guidance promote ")
    assert "guidance promote NAME --version 3" in done.stdout
    assert "python -m" not in done.stdout
    assert run("-m", "jobs.promote", "--help").stdout.startswith("usage: python -m jobs.promote ")


SLOW_TO_IMPORT = ("torch", "ray", "mlflow", "pyarrow", "pandas", "cv2", "matplotlib", "numpy")


@pytest.mark.parametrize("job", JOBS)
def test_help_imports_nothing_slow(job: str) -> None:
    code = f"""
import sys
from jobs.{job} import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
print("imported:", *(name for name in {SLOW_TO_IMPORT} if name in sys.modules), file=sys.stderr)
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported:\n"


def test_listing_imports_no_configuration() -> None:
    code = "import sys, jobs.__main__ as m; m.main([]); print('pydantic' in sys.modules)"
    assert run("-c", code).stdout.splitlines()[-1] == "False"


def test_listing_into_a_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
