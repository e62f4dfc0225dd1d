"""The documents name commands, options, files, tests and messages that exist."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from jobs.__main__ import JOBS
from tests.conftest import ROOT
from tests.test_imports import LEVELS, python_files

DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "infra", "benchmarks") for p in (ROOT / d).rglob("*.md")),
    ]
)
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
# Quoted in docs/faults.md, raised by a library.
EXTERNAL_MESSAGES = {"DataLoader worker (pid N) is killed by signal"}


def commands(path: Path) -> list[str]:
    """Return the ``python -m jobs...`` commands of a document or recipe, one line each."""
    text = re.sub(r"^#", "", path.read_text(), flags=re.M) if path.suffix == ".yaml" else ""
    text = text or path.read_text()
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"python -m (jobs\.\w+[^\n`#]*)", joined)


@cache
def help_of(job: str) -> str:
    """Return the help text of a job."""
    done = subprocess.run(
        [sys.executable, "-m", job, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


def faults() -> list[str]:
    """Return the sections of docs/faults.md, one per fault."""
    text = (ROOT / "docs" / "faults.md").read_text()
    return re.split(r"^### ", text, flags=re.M)[1:]


def quotes(fault: str) -> list[str]:
    """Return the messages that a fault quotes: several words in backticks after "You see"."""
    (seen,) = re.findall(r"^- You see: (.*?)(?=^- |^$)", f"{fault}\n", flags=re.M | re.S)
    found = [" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", seen)]
    return [quote for quote in found if " " in quote and quote not in EXTERNAL_MESSAGES]


def literal_parts(quote: str) -> list[str]:
    """Return the phrases of a quote between punctuation, inserted values and the exit prefix."""
    quote = re.sub(r"^(error|failed|stopped): ", "", quote)
    parts = re.split(r"\.\.\.|[;:,'()\[\]]|\b(?:[A-Z]|[A-Z]{3,})\b|\b\d[\d.]*\b", quote)
    return [" ".join(part.split()) for part in parts if re.search(r"[a-z]{2}", part)]


@cache
def messages() -> tuple[str, ...]:
    """Return all strings of the code except docstrings, with ``\\0`` for each inserted value."""
    found = []
    for path in python_files():
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        found += [template(node) for node in nodes if id(node) not in docstrings]
    return tuple(text for text in found if text)


def template(node: ast.AST) -> str:
    """Return the text of a string or f-string, or nothing for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "\0" for part in node.values)
    return ""


FAULTS = faults()
QUOTES = sorted({quote for fault in FAULTS for quote in quotes(fault)})


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_jobs_and_options_that_exist(path: Path) -> None:
    for command in commands(path):
        job, *arguments = command.split()
        text = help_of(job)
        for option in re.findall(r"(?<!\S)--[\w.-]+", " ".join(arguments)):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", text), (command, option)


def test_readme_shows_main_commands() -> None:
    found = {command.split()[0] for command in commands(ROOT / "README.md")}
    assert {"jobs.prepare", "jobs.train", "jobs.tune", "jobs.promote", "jobs.predict"} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_guidance_commands_name_jobs(path: Path) -> None:
    assert set(re.findall(r"`guidance ([a-z]\w*)", path.read_text())) <= JOBS.keys()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), flags=re.M))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_recipes_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+)", text)
    for link in links:
        if not re.match(r"[a-z]+://", link):
            assert (path.parent / link).exists(), link
    for recipe in re.findall(r"configs/[\w/-]+\.yaml", text):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_turn_telemetry_off(path: Path) -> None:
    for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), flags=re.M | re.S):
        ray = re.search(r"^ray (start|up) ", block, flags=re.M)
        assert not ray or "RAY_USAGE_STATS_ENABLED=0 " in block[: ray.start()], block
        for line in re.findall(r".*\bmlflow (?:ui|server) .*", block):
            assert line.startswith("MLFLOW_DISABLE_TELEMETRY=true "), line


def test_submitted_revision_is_json_after_shell_expansion() -> None:
    texts = [(ROOT / name).read_text() for name in ("README.md", "infra/README.md")]
    (line,) = {line for text in texts for line in re.findall(r"^REVISION=.*", text, flags=re.M)}
    script = f"git() {{ echo 'v1.0-3-g1eec9d2-dirty'; }}\n{line}\nprintf %s \"$REVISION\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"env_vars": {"GIT_REVISION": "v1.0-3-g1eec9d2-dirty"}}


def required_arguments(source: str) -> list[str]:
    """Return the required arguments of a script's command line."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    # loader.py calls it through an alias.
    adds = [c for c in calls if ast.unparse(c.func).split(".")[-1] in {"add_argument", "add"}]
    names = [(ast.unparse(c.args[0]).strip("'"), c.keywords) for c in adds if c.args]
    return [
        name
        for name, keywords in names
        if not name.startswith("-")
        or any(k.arg == "required" and ast.unparse(k.value) == "True" for k in keywords)
    ]


def test_make_bench_runs_scripts_without_required_arguments() -> None:
    done = subprocess.run(
        ["make", "-n", "bench"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    (names,) = re.findall(r"for name in (.*?);", done.stdout)
    assert {"assign", "loader", "ray_overhead", "scale"} <= set(names.split())
    for name in names.split():
        source = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert "def main() -> None:" in source, name
        assert source.endswith('if __name__ == "__main__":\n    main()\n'), name
        assert not required_arguments(source), name


def test_required_arguments_are_found() -> None:
    assert required_arguments((ROOT / "benchmarks" / "loader_set.py").read_text()) == ["--out"]
    assert required_arguments("add('shards')") == ["shards"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_paths_exist(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"`((?:tests|infra|benchmarks|docs|\.ci|\.github)/[^`\s]*)`", text):
        assert (ROOT / name).exists(), name


def test_every_fault_names_its_tests() -> None:
    for fault in FAULTS:
        assert re.search(r"^- Tests?: `tests/[\w/]+\.py`", fault, flags=re.M), fault


def test_every_fault_states_loss_and_appearance() -> None:
    assert len(FAULTS) >= 26
    for fault in FAULTS:
        assert re.search(r"^- Lost: ", fault, flags=re.M), fault
        assert re.search(r"^- You see: ", fault, flags=re.M), fault


@pytest.mark.parametrize("quote", QUOTES)
def test_quoted_message_is_in_the_code(quote: str) -> None:
    parts = literal_parts(quote)
    assert parts
    missing = [part for part in parts if not any(part in message for message in messages())]
    assert missing == []


def test_quotes_are_found_and_split() -> None:
    assert len(QUOTES) >= 15
    quote = "error: run 'NAME' uses 4 of N slots (PATH: is busy); ..."
    assert literal_parts(quote) == ["run", "uses", "of", "slots", "is busy"]
    (fault,) = [fault for fault in FAULTS if fault.startswith("MLflow unavailable at the start")]
    assert quotes(fault) == ["failed: tracking.uri ... cannot be reached"]


def test_architecture_lists_every_package_and_level() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, flags=re.M)
    assert [set(re.findall(r"\w+", names)) for _, names in rows] == list(reversed(LEVELS))
    (tree,) = re.findall(r"^```\n(model/ .*?)^```", text, flags=re.M | re.S)
    packages = {path.parent.name for path in python_files()}
    assert set(re.findall(r"(\w+)/(?=\s|$)", tree)) == packages


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_prose_is_wrapped_at_100_columns(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    long = [line for line in prose.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert [line for line in long if not re.search(r"\]\(", line)] == []
