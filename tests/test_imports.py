"""Imports run one way between packages, and `model/` depends on torch only."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("model", "pipeline", "jobs")
# A package imports only packages of lower levels, never of the same level.
LEVELS = (
    {"model", "errors", "safe_yaml"},
    {"config", "storage", "malloc", "progress"},
    {"tracking", "distributed"},
    {"data", "checkpoints", "flops", "metrics"},
    {"reports"},
    {"registry"},
    {"evaluation", "pretrained"},
    {"promotion", "predict"},
    {"training"},
    {"trials", "start"},
    {"comparison"},
    {"sweep"},
    {"jobs"},
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
MAX_MODULES = 12  # per directory, without __init__.py
# A registered version contains a copy of model/ under another package name, so model/ imports only
# these, and its own modules by relative imports.
MODEL_MAY_IMPORT = frozenset({"torch", "__future__"}) | sys.stdlib_module_names


def imports_of(source: str) -> list[tuple[int, str]]:
    """Return (line, module) of every import at any depth; relative ones start with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in LAYERS:  # "from pipeline import errors" imports a module
                found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
    return found


def package_of(module: str) -> str:
    """Return the package of a module within the order: "data" for "pipeline.data.shards"."""
    top, *rest = module.split(".")
    return rest[0] if top == "pipeline" and rest else top


def violations(path: str, source: str) -> list[str]:
    """Return the imports of a file that break the order; ``path`` is relative to the root."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    layer, package = module.split(".")[0], package_of(module)
    depth, own = path.count("/") - 1, LEVEL_OF.get(package, 0)
    wrong = []
    for line, name in imports_of(source):
        dots = len(name) - len(name.lstrip("."))
        top, target = name.split(".")[0], package_of(name)
        if dots > depth + 1:
            wrong.append(f"{path}:{line}: {name} leaves {layer}/")
        elif layer == "model" and not dots and top not in MODEL_MAY_IMPORT:
            wrong.append(f"{path}:{line}: model/ must not import {name}")
        elif top in LAYERS and target != package and target in LEVEL_OF and LEVEL_OF[target] >= own:
            wrong.append(f"{path}:{line}: {package} must not import {name}")
    return wrong


def python_files() -> list[Path]:
    """Return every Python file of the product."""
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def test_imports_run_one_way():
    wrong = [
        fault
        for path in python_files()
        for fault in violations(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_level():
    found = {
        package_of(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in python_files()
    }
    assert found - {"__init__", "pipeline"} == set(LEVEL_OF)


def test_directories_have_few_modules():
    folders = {path.parent for path in python_files()}
    sizes = {
        str(folder.relative_to(ROOT)): len([p for p in folder.glob("*.py") if p.stem[:2] != "__"])
        for folder in folders
    }
    crowded = {name: size for name, size in sizes.items() if size > MAX_MODULES}
    # Assigners have one file each beside their shared modules; jobs have one module per command.
    assert set(crowded) <= {"model/assign", "jobs"}, crowded
    assert all(size <= 20 for size in crowded.values()), crowded


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/boxes.py", "import ray"),
        ("model/boxes.py", "def f():\n    from mlflow import pyfunc"),
        ("model/boxes.py", "import numpy as np"),
        ("model/boxes.py", "from model.boxes import box_iou"),
        ("model/boxes.py", "from ..pipeline import config"),
        ("model/assign/iou.py", "from ...pipeline import config"),
        ("pipeline/errors.py", "import jobs.train"),
        ("pipeline/data/loading/batch.py", "from jobs import train"),
        ("pipeline/storage/folder.py", "from pipeline.tracking import connect"),
        ("pipeline/storage/folder.py", "from pipeline.config import Config"),
        ("pipeline/checkpoints/manager.py", "from pipeline.training.trainer import trainer"),
        ("pipeline/data/shards/cache.py", "def f():\n    import pipeline.checkpoints.store"),
        ("pipeline/registry/load.py", "from pipeline import evaluation"),
        ("pipeline/training/fit.py", "from pipeline.sweep import sweep"),
    ],
)
def test_wrong_import_is_found(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/boxes.py", "import math\nimport torch.nn.functional as F"),
        ("model/boxes.py", "from .boxes import box_iou"),
        ("model/assign/iou.py", "from ..boxes import box_iou"),
        ("pipeline/data/shards/cache.py", "import ray\nfrom pipeline.data.loading import batch"),
        ("pipeline/training/fit.py", "from pipeline.data import Manifest\nfrom model import x"),
        ("jobs/train.py", "from pipeline.config import Config\nimport model"),
    ],
)
def test_allowed_import_passes(path, source):
    assert violations(path, source) == []
