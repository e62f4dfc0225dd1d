"""The wheel: what it contains, and that its jobs run outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "pipeline", "jobs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_contains_recipes_and_type_markers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for recipe in (ROOT / "configs").rglob("*.yaml"):
            packed = f"jobs/configs/{recipe.relative_to(ROOT / 'configs')}"
            assert archive.read(packed) == recipe.read_bytes()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.j2")}
    assert templates
    assert templates <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_wheel_has_the_command_guidance(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        parser = ConfigParser()
        parser.read_string(archive.read(name).decode())
    assert dict(parser["console_scripts"]) == {"guidance": "jobs.__main__:main"}


def test_installed_jobs_find_recipes_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import sys; sys.argv[0] = 'guidance'; from jobs.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "describe", "--config", "shapes", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
    )
    (detector,) = json.loads(done.stdout)["detectors"]
    assert (detector["backbone"], detector["image_size"]) == ("slim", 128)
    wrong = subprocess.run(
        [sys.executable, "-c", code, "describe", "--config", "configs/shape.yaml"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("included recipe; did you mean shapes?\n")
