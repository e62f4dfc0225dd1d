"""The Dockerfile, read: what it installs, as whom it runs, what it must not contain."""

import re

from tests.conftest import ROOT
from tests.infra.pins import image

FOLDER = ROOT / "infra" / "image"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")


def instructions():
    lines = re.sub(r"(?m)^#.*\n", "", DOCKERFILE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_runs_as_a_numbered_user_that_is_not_root():
    users = [value for name, value in instructions() if name == "USER"]
    assert users[-1] == "1000"


def test_installs_the_pins():
    assert any("--constraint constraints.txt" in value for _, value in instructions())


def test_copies_only_what_exists_and_enters_the_build():
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


def test_holds_no_secret():
    names = [value for name, value in instructions() if name in {"ARG", "ENV"}]
    assert not re.search(r"(?i)token|secret|password|_key", " ".join(names))


def test_the_build_command_names_the_image_of_the_manifests():
    assert f"-t {image()} ." in DOCKERFILE


def test_the_revision_of_the_build_command_reaches_the_runs():
    assert f"-t {image()} . \\\n#       --build-arg GIT_REVISION=$(git describe" in DOCKERFILE
    assert ("ARG", "GIT_REVISION=") in instructions()
    assert ("ENV", "IMAGE_REVISION=${GIT_REVISION}") in instructions()
