"""What the documents say exists: commands, options, make targets, files, links."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "infra", "benchmarks") for p in (ROOT / d).rglob("*.md")),
    ]
)
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


def commands(path: Path) -> list[str]:
    """``python -m jobs...`` commands of a document or a recipe's head, on one line each."""
    text = re.sub(r"^#", "", path.read_text(), flags=re.M) if path.suffix == ".yaml" else ""
    text = text or path.read_text()
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"python -m (jobs\.\w+[^\n`#]*)", joined)


@cache
def help_of(job: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", job, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_jobs_and_options_that_exist(path: Path) -> None:
    for command in commands(path):
        job, *arguments = command.split()
        text = help_of(job)
        for option in re.findall(r"(?<!\S)--[\w.-]+", " ".join(arguments)):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", text), (command, option)


def test_the_readme_holds_commands_at_all() -> None:
    found = {command.split()[0] for command in commands(ROOT / "README.md")}
    assert {"jobs.prepare", "jobs.train", "jobs.tune", "jobs.promote", "jobs.predict"} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), flags=re.M))
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_recipes_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+)", text)
    for link in links:
        if not re.match(r"[a-z]+://", link):
            assert (path.parent / link).exists(), link
    for recipe in re.findall(r"configs/[\w/-]+\.yaml", text):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_starts_ray_or_mlflow_tells_nobody(path: Path) -> None:
    for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), flags=re.M | re.S):
        ray = re.search(r"^ray (start|up) ", block, flags=re.M)
        assert not ray or "RAY_USAGE_STATS_ENABLED=0 " in block[: ray.start()], block
        for line in re.findall(r".*\bmlflow (?:ui|server) .*", block):
            assert line.startswith("MLFLOW_DISABLE_TELEMETRY=true "), line


def test_the_revision_that_documents_submit_is_json_after_the_shell() -> None:
    texts = [(ROOT / name).read_text() for name in ("README.md", "infra/README.md")]
    (line,) = {line for text in texts for line in re.findall(r"^REVISION=.*", text, flags=re.M)}
    script = f"git() {{ echo 'v1.0-3-g1eec9d2-dirty'; }}\n{line}\nprintf %s \"$REVISION\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"env_vars": {"GIT_REVISION": "v1.0-3-g1eec9d2-dirty"}}


def required_arguments(source: str) -> list[str]:
    """Arguments without which a script's command line is refused."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    # loader.py has a short name for it.
    adds = [c for c in calls if ast.unparse(c.func).split(".")[-1] in {"add_argument", "add"}]
    names = [(ast.unparse(c.args[0]).strip("'"), c.keywords) for c in adds if c.args]
    return [
        name
        for name, keywords in names
        if not name.startswith("-")
        or any(k.arg == "required" and ast.unparse(k.value) == "True" for k in keywords)
    ]


def test_make_bench_runs_scripts_that_need_no_argument() -> None:
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
