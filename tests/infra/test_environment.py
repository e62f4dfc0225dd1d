"""The pins: complete, exact, and free of anything that holds on one machine alone."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.infra.pins import project

LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LINES}


def closure():
    """Names of all distributions that installing the project with [dev] brings, by metadata."""
    requirements = list(project()["dependencies"])
    requirements += project()["optional-dependencies"]["dev"]
    todo = [(Requirement(text), "") for text in requirements]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                needs = metadata.requires(name) or []
                todo += [(Requirement(text), wanted) for text in needs]
    return {name for name, _ in seen}


def test_every_line_is_one_exact_version():
    wrong = [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)]
    assert not wrong, "no options, URLs or local versions: " + ", ".join(wrong)


def test_everything_installed_is_pinned():
    cuda = {name for name in closure() if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert sorted(closure() - cuda - PINS.keys()) == []


@pytest.mark.parametrize("name", ["torch", "ray", "mlflow", "numpy", "ruff", "pytest"])
def test_the_pinned_version_is_the_installed_one(name):
    assert metadata.version(name).split("+")[0] == PINS[name]


def test_torch_is_exact_in_the_project_too():
    assert f"torch=={PINS['torch']}" in project()["dependencies"]


def test_every_dependency_is_explained():
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    names = [Requirement(d).name for d in project()["dependencies"]]
    names += [Requirement(d).name for d in project()["optional-dependencies"]["dev"]]
    assert [name for name in names if f"| `{name}`" not in text] == []
