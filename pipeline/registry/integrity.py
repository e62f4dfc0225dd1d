"""The checksums of a bundle: a changed one is rejected before any of its code runs.

The manifest lists every file of the bundle. Its own hash is a tag of the version, in the database
of the registry, so that write access to the artifacts does not suffice to change a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pipeline.errors import UserError
from pipeline.storage.checksum import file_sha256
from pipeline.storage.document import Document, DocumentError

MANIFEST = "sha256.json"
HASH_TAG = "bundle.sha256"
COMPILED = "__pycache__"  # MLflow leaves it beside code that it has imported
_ADDED_BY_MLFLOW = frozenset({"registered_model_meta"})  # when it downloads a version


class BundleManifest(Document):
    """``sha256.json`` of a bundle."""

    FORMAT_VERSION: ClassVar[int] = 1

    files: dict[str, str] = Field(description="sha256 of every other file, by relative path")


def seal(folder: Path) -> str:
    """Write the manifest of a bundle and return its sha256."""
    files = {name: file_sha256(folder / name) for name in _files(folder)}
    (folder / MANIFEST).write_bytes(BundleManifest(files=files).encode())
    return file_sha256(folder / MANIFEST)


def verify(folder: Path, expected: str | None, name: str) -> None:
    """Check that a bundle is as it was registered. Raises UserError that names what differs.

    ``expected`` is the hash of its manifest. Without one, only damage is found; a version that was
    registered before there were manifests has neither.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if expected is None:
            return
        raise _changed(name, f"{MANIFEST} is missing")
    if expected is not None and file_sha256(path) != expected:
        raise _changed(name, f"{MANIFEST} is not the one that was registered")
    try:
        files = BundleManifest.parse(path.read_bytes(), f"{name}: {MANIFEST}").files
    except DocumentError as error:
        raise UserError(str(error)) from None
    present = set(_files(folder))
    if missing := sorted(files.keys() - present):
        raise _changed(name, f"{missing[0]} is missing")
    if added := sorted(present - files.keys()):
        raise _changed(name, f"{added[0]} was added")
    for file, digest in files.items():
        if file_sha256(folder / file) != digest:
            raise _changed(name, f"{file} has other content")


def _files(folder: Path) -> list[str]:
    """List the files of a bundle, without its manifest and compiled code."""
    names = (
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and COMPILED not in path.relative_to(folder).parts
    )
    skipped = {MANIFEST, *_ADDED_BY_MLFLOW}
    return [name for name in names if name not in skipped]


def _changed(name: str, what: str) -> UserError:
    return UserError(
        f"{name} was changed after it was registered: {what}; none of its code was run. Register "
        "the model again, and find out who can write to the artifacts"
    )
