"""The versions that the files in infra/ and the documents must agree with."""

import tomllib

from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def pins() -> dict[str, str]:
    """Return the version of every package in constraints.txt, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def pinned(name: str) -> str:
    """Return the version of a package in constraints.txt."""
    return pins()[canonicalize_name(name)]


def project() -> dict:
    """Return the [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def image() -> str:
    """Return the name and tag of the project's image."""
    return f"{project()['name']}:{project()['version']}"
