"""What the documents say exists: commands, options, make targets, files, links."""

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
