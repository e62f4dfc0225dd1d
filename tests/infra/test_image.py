"""The Dockerfile installs the pins, runs unprivileged and contains no secret."""

import re

from tests.conftest import ROOT
from tests.infra.pins import image

FOLDER = ROOT / "infra" / "image"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")


def instructions():
    lines = re.sub(r"(?m)^#.*\n", "", DOCKERFILE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_image_runs_as_numeric_non_root_user():
    users = [value for name, value in instructions() if name == "USER"]
    assert users[-1] == "1000"


def test_image_installs_pins():
    assert any("--constraint constraints.txt" in value for _, value in instructions())


def test_copied_paths_exist_and_are_in_build_context():
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for name, value in instructions()
        if name == "COPY"
        for source in value.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_image_contains_no_secret():
    names = [value for name, value in instructions() if name in {"ARG", "ENV"}]
    assert not re.search(r"(?i)token|secret|password|_key", " ".join(names))


def test_build_command_uses_image_name_of_manifests():
    assert f"-t {image()} ." in DOCKERFILE


def test_build_revision_reaches_environment():
    assert f"-t {image()} . \\\n#       --build-arg GIT_REVISION=$(git describe" in DOCKERFILE
    assert ("ARG", "GIT_REVISION=") in instructions()
    assert ("ENV", "IMAGE_REVISION=${GIT_REVISION}") in instructions()
