"""Workflow, templates, changelog, citation and security policy are well formed and accurate."""

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.infra.pins import project

GITHUB = ROOT / ".github"
WORKFLOW = GITHUB / "workflows" / "ci.yaml"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yaml"))
FORM_ELEMENTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
TEXTS = [*(p for p in GITHUB.rglob("*") if p.is_file()), ROOT / "SECURITY.md"]


def load(path: Path) -> Any:
    """Return the content of a YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def test_workflow_runs_the_full_check_on_every_supported_python() -> None:
    job = load(WORKFLOW)["jobs"]["check"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    supported = re.findall(r"Python :: (3\.\d+)", " ".join(project()["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == supported


def test_workflow_can_only_read_and_uses_no_secret() -> None:
    assert load(WORKFLOW)["permissions"] == {"contents": "read"}
    assert "secrets" not in WORKFLOW.read_text("utf-8")


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_issue_form_is_well_formed(path: Path) -> None:
    form = load(path)
    assert form["name"]
    assert form["description"]
    assert {element["type"] for element in form["body"]} <= FORM_ELEMENTS
    inputs = [element for element in form["body"] if element["type"] != "markdown"]
    assert all(element["attributes"]["label"] for element in inputs)
    ids = [element["id"] for element in inputs]
    assert ids
    assert len(set(ids)) == len(ids)


def test_there_are_forms_for_bugs_and_features() -> None:
    assert {path.stem for path in FORMS} == {"bug_report", "feature_request"}
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(path: Path) -> None:
    names = re.findall(r"(?<![\w./:-])(?:[\w.-]+/)*[A-Z]+\.(?:md|cff)", path.read_text("utf-8"))
    names += re.findall(r"(?<![\w./:])(?:\.ci|docs|infra|configs|tests)/[\w./-]*", path.read_text())
    for name in names:
        assert (ROOT / name).exists(), name


def test_pull_request_template_names_check_and_changelog() -> None:
    text = (GITHUB / "pull_request_template.md").read_text("utf-8")
    assert ".ci/run" in text
    assert "CHANGELOG.md" in text


def test_changelog_follows_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.split(r"^## ", text, flags=re.M)[1:]
    assert releases
    for release in releases:
        title, *sections = re.split(r"^### ", release, flags=re.M)
        assert re.match(r"\[(Unreleased\]|\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d)\n", title)
        headings = [section.split("\n")[0] for section in sections]
        allowed = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert set(headings) <= set(allowed)
        assert len(set(headings)) == len(headings)


def test_citation_matches_project_and_paper() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["authors"]
    assert citation["title"] == project()["name"]
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]
    (paper,) = citation["references"]
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert paper["title"] in readme
    assert paper["url"] in readme
    names = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    assert ", ".join(names) in readme


def unsafe_loads(source: str) -> list[int]:
    """Return the lines that call ``torch.load`` without ``weights_only=True``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func) == "torch.load"
        and not any(
            k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords
        )
    ]


def test_torch_load_never_unpickles() -> None:
    files = [
        path for layer in ("model", "pipeline", "jobs") for path in (ROOT / layer).rglob("*.py")
    ]
    found = [(path.name, line) for path in files for line in unsafe_loads(path.read_text("utf-8"))]
    assert found == []
    assert unsafe_loads("torch.load(a)\ntorch.load(a, weights_only=True)") == [1]


def commit_subject_check(tmp_path: Path, subject: str) -> bool:
    """Return whether the commit-msg hook accepts a subject."""
    message = tmp_path / "message"
    message.write_text(f"{subject}\n\nWhy.\n", "utf-8")
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    (hook,) = (hook for hook in hooks if hook["id"] == "commit-subject")
    done = subprocess.run(["bash", "-c", f"{hook['entry']} {message}"], capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize(
    ("subject", "accepted"),
    [
        ("[docs] Add a security policy", True),
        ("[ci] " + "A" + "b" * 66, True),
        ("[ci] " + "A" + "b" * 67, False),
        ("Add a security policy", False),
        ("[docs] add a security policy", False),
        ("[docs] Add a security policy.", False),
        ("Merge branch 'main'", True),
        ("fixup! [docs] Add a security policy", True),
    ],
)
def test_commit_subject_hook(tmp_path: Path, subject: str, accepted: bool) -> None:
    assert commit_subject_check(tmp_path, subject) is accepted
