"""Imports run one way, jobs -> pipeline -> model, and `model/` stands alone but for torch."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("model", "pipeline", "jobs")
# The bundle of a registered version carries model/ under another name, so nothing else may be
# needed there and nothing inside may be named absolutely.
MODEL_MAY_IMPORT = frozenset({"torch", "__future__"}) | sys.stdlib_module_names


def imported(source: str) -> list[tuple[int, str]]:
    """(line, module) of every import, at any depth; relative ones start with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or "")))
    return found


def violations(layer: str, source: str, depth: int = 0) -> list[str]:
    """What a file breaks; depth is the number of packages between it and the layer's root."""
    above = LAYERS[LAYERS.index(layer) + 1 :]
    wrong = []
    for line, module in imported(source):
        dots = len(module) - len(module.lstrip("."))
        top = module.split(".")[0]
        if dots > depth + 1:
            wrong.append(f"{line}: {module} leaves {layer}/")
        elif not dots and (top in above or (layer == "model" and top not in MODEL_MAY_IMPORT)):
            wrong.append(f"{line}: {layer}/ must not import {module}")
    return wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files, f"{layer}/ has no Python files"
    wrong = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in files
        for fault in violations(
            layer, path.read_text("utf-8"), len(path.relative_to(ROOT / layer).parts) - 1
        )
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("layer", "source", "depth"),
    [
        ("model", "import ray", 0),
        ("model", "def f():\n    from mlflow import pyfunc", 0),
        ("model", "import numpy as np", 0),
        ("model", "from model.boxes import box_iou", 0),
        ("model", "from ..pipeline import config", 0),
        ("model", "from ...pipeline import config", 1),
        ("pipeline", "import jobs.train", 0),
        ("pipeline", "from jobs import train", 1),
    ],
)
def test_wrong_imports_are_found(layer, source, depth):
    assert violations(layer, source, depth)


@pytest.mark.parametrize(
    ("layer", "source", "depth"),
    [
        ("model", "import math\nimport torch.nn.functional as F", 0),
        ("model", "from .boxes import box_iou", 0),
        ("model", "from ..boxes import box_iou", 1),
        ("pipeline", "import ray\nfrom model import build_detector", 0),
        ("jobs", "from pipeline.config import Config\nimport model", 0),
    ],
)
def test_right_imports_pass(layer, source, depth):
    assert violations(layer, source, depth) == []
