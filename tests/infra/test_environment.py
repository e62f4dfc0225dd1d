"""The pins are complete, exact and independent of any one machine."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.infra.pins import pinned, pins, project

LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


def closure():
    """Return the names of all distributions that installing the project with [dev] brings.

    They are read from the metadata of the installed packages.
    """
    requirements = list(project()["dependencies"])
    requirements += project()["optional-dependencies"]["dev"]
    todo = [(Requirement(text), "") for text in requirements]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for chosen in {"", *requirement.extras}:
            if (name, chosen) not in seen:
                seen.add((name, chosen))
                needs = metadata.requires(name) or []
                todo += [(Requirement(text), chosen) for text in needs]
    return {name for name, _ in seen}


def test_every_line_pins_one_exact_version():
    wrong = [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)]
    assert not wrong, "no options, URLs or local versions: " + ", ".join(wrong)


def test_every_installed_package_is_pinned():
    cuda = {name for name in closure() if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert sorted(closure() - cuda - pins().keys()) == []


@pytest.mark.parametrize("name", ["torch", "ray", "mlflow", "numpy", "ruff", "pytest"])
def test_pinned_version_is_installed(name):
    assert metadata.version(name).split("+")[0] == pinned(name)


def test_torch_is_exact_in_pyproject():
    assert f"torch=={pinned('torch')}" in project()["dependencies"]


def test_every_dependency_is_documented():
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    names = [Requirement(d).name for d in project()["dependencies"]]
    names += [Requirement(d).name for d in project()["optional-dependencies"]["dev"]]
    assert [name for name in names if f"| `{name}`" not in text] == []
