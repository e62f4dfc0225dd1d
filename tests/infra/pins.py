"""The versions that the rest of infra/ must agree with."""

import re
import tomllib

from tests.conftest import ROOT


def pinned(name: str) -> str:
    """The version of a package in constraints.txt."""
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    return re.search(rf"^{re.escape(name)}==(\S+)$", pins, re.MULTILINE).group(1)


def project() -> dict:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def image() -> str:
    """Name and tag of the project's image."""
    return f"{project()['name']}:{project()['version']}"
