"""Shared code of the jobs: exit codes, one line per error, stdout for machines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.common import RECIPES, announced, find_recipes
from pipeline.config import Config

JOBS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parents[2] / "jobs").glob("*.py")
    if not path.stem.startswith("_")
)

NOISY = """
import os, sys
from jobs.cli.common import announced, make_parser, run_job
from pipeline.config import Config
from pipeline.errors import UserError

def main(argv):
    options = make_parser("x", "x").parse_args(argv)
    print("progress")
    os.system("echo from a child")
    if os.environ.get("FAIL"):
        raise UserError("shards/x: no manifest.json")
    if os.environ.get("INTERRUPT"):
        with announced(Config(), "one"):
            raise KeyboardInterrupt
    return {"ap": 0.5}

run_job(main)
"""


def run(code: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )


def test_announced_folder_keeps_the_options_of_its_uri_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = "s3://bucket/runs?endpoint_override=localhost:9000"
    with announced(Config.from_dict({"ray": {"storage": uri}}), "one"):
        pass
    assert "s3://bucket/runs/one?endpoint_override=localhost:9000," in capsys.readouterr().err


def test_json_prints_exactly_one_line_on_stdout() -> None:
    done = run(NOISY, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"ap": 0.5}
    assert "progress" in done.stderr
    assert "from a child" in done.stderr


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return {'tracking_uri': text, 'path': Path(text)}", 0),
        ("raise UserError(text)", 2),
        ("raise TrainingFailed(text)", 1),
        ("raise TrainingStopped(text)", 143),
        ("raise RuntimeError(text)", 1),
    ],
)
def test_secrets_leave_a_job_on_neither_stream(end: str, code: int) -> None:
    done = run(
        "import logging\n"
        "from pathlib import Path\n"
        "from jobs.cli.common import run_job\n"
        "from pipeline.errors import TrainingFailed, TrainingStopped, UserError\n"
        "def main(argv):\n"
        "    text = 'postgresql://me:S3cret@host/db?sslpassword=S3cret'\n"
        "    logging.getLogger('x').warning('cannot reach %s', text)\n"
        f"    {end}\n"
        "run_job(main)",
        "--json",
    )
    assert done.returncode == code
    assert "S3cret" not in done.stdout + done.stderr
    assert "cannot reach postgresql://me:***@host/db?sslpassword=***" in done.stderr
    if code == 0:
        uri = "postgresql://me:***@host/db?sslpassword=***"
        assert json.loads(done.stdout)["tracking_uri"] == uri


def test_user_error_is_one_line_and_exit_code_2() -> None:
    done = run(NOISY, FAIL="1")
    assert done.returncode == 2
    assert done.stderr == "error: shards/x: no manifest.json\n"


@pytest.mark.parametrize("lines", ["'a line'", "*['a line'] * 100_000"])
@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_closed_stdout_ends_quietly_with_exit_code_141(lines: str, argv: list[str]) -> None:
    code = NOISY.replace('print("progress")', f"print({lines})").replace("0.5", "'x' * 100_000")
    job = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert job.stdout is not None
    assert job.stderr is not None
    job.stdout.close()
    written = job.stderr.read()
    assert job.wait() == 141
    assert b"Traceback" not in written
    assert b"BrokenPipe" not in written


def test_interruption_says_how_to_resume() -> None:
    done = run(NOISY, INTERRUPT="1", MLFLOW_TRACKING_URI="http://me:pass@host:5000")
    assert done.returncode == 130
    first, last = done.stderr.splitlines()
    runs = Path(__file__).resolve().parents[2] / "runs"
    assert first == f"run one: stored in {runs}/one, reported to http://me:***@host:5000"
    assert last == "interrupted; to resume, run the same command with --run one"


def test_recipes_are_found_where_links_became_files(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "configs").write_text("../configs")
    assert find_recipes(tmp_path / "jobs") == tmp_path / "configs"
    assert Path(__file__).resolve().parents[2] / "jobs" / "configs" == RECIPES


def test_output_to_a_pipe_turns_colours_off() -> None:
    code = "import os; from jobs.cli.common import run_job; run_job(lambda argv: dict(os.environ))"
    done = run(code, "--json")
    environment = json.loads(done.stdout)
    assert environment["NO_COLOR"] == "1"
    assert environment["RAY_COLOR_PREFIX"] == "0"


def test_unknown_option_is_one_line_and_exit_code_2() -> None:
    done = run(NOISY, "--jso")
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --jso; did you mean --json?\n"


@pytest.mark.parametrize("job", JOBS)
def test_help_of_every_job_names_json_and_the_command(job: str) -> None:
    done = run(f"from jobs.{job} import main; main(['--help'])")
    assert done.returncode == 0
    assert "--json" in done.stdout
    assert f"python -m jobs.{job}" in done.stdout
