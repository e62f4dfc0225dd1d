"""Getting a model version back: its folder, or its weights and description."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from torch import Tensor

from pipeline.errors import UserError
from pipeline.registry.bundle import FORMAT_VERSION
from pipeline.tracking import connect, mask, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class LoadedDetector(NamedTuple):
    """``build_detector(**spec).load_state_dict(state)`` is the registered detector."""

    spec: dict[str, Any]
    classes: list[str]
    state: dict[str, Tensor]
    evaluate: dict[str, Any]
    """The configuration's section ``evaluate``, by which its figures were made."""
    fit: str = "stretch"
    """How images meet its input."""


def fetch(model_uri: str, folder: Path, tracking_uri: str | None = None) -> Path:
    """The local folder of a model: ``models:/NAME@ALIAS``, ``models:/NAME/1`` or a folder.

    Unlike MLflow's own resolution this needs no process-wide tracking URI, and a wrong name says
    which exist.
    """
    if not model_uri.startswith("models:"):
        if not (Path(model_uri) / "MLmodel").is_file():
            raise UserError(f"{model_uri}: no model there; give models:/NAME@champion or a folder")
        return Path(model_uri)
    uri = tracking_uri or resolve_uri()
    client = connect(uri)
    name, version = _find(client, uri, model_uri)
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(name, str(version))
    try:
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri))
    except Exception as error:
        raise UserError(
            f"{model_uri}: its files at {mask(source)} cannot be read: {error}"
        ) from None


def _find(client: MlflowClient, uri: str, model_uri: str) -> tuple[str, int]:
    match = _MODEL_URI.fullmatch(model_uri)
    if match is None:
        raise UserError(f"{model_uri!r} is no model; write models:/NAME@ALIAS or models:/NAME/1")
    name, alias, version = match["name"], match["alias"], match["version"]
    aliases = known_aliases(client, uri, name)
    if alias is None:
        check_version(client, name, int(version))
        return name, int(version)
    if alias not in aliases:
        listed = ", ".join(sorted(aliases)) or "none; python -m jobs.promote makes one"
        raise UserError(f"{name} has no alias {alias!r}; aliases: {listed}")
    return name, aliases[alias]


def known_aliases(client: MlflowClient, uri: str, name: str) -> dict[str, int]:
    """Alias -> version; raises UserError naming what is registered if ``name`` is not."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException:
        known = sorted(model.name for model in client.search_registered_models())
        listed = f"registered: {', '.join(known)}" if known else "none is registered"
        raise UserError(f"model {name!r} does not exist in {mask(uri)}; {listed}") from None
    return {alias: int(version) for alias, version in model.aliases.items()}


def check_version(client: MlflowClient, name: str, version: int) -> None:
    """Raises UserError naming the versions that exist if this one does not."""
    found = client.search_model_versions(f"name='{name}'")
    versions = sorted(int(item.version) for item in found)
    if version not in versions:
        listed = ", ".join(map(str, versions)) or "none"
        raise UserError(f"{name} has no version {version}; versions: {listed}")


def load_detector(model_uri: str, tracking_uri: str | None = None) -> LoadedDetector:
    """Spec, classes and weights of a registered detector; runs none of its code."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch(model_uri, Path(scratch), tracking_uri)
        path = folder / "artifacts" / "detector.json"
        if not path.is_file():
            raise UserError(f"{model_uri} is not a detector of this project")
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{model_uri} has format {about['format_version']}, newer than {FORMAT_VERSION}; "
                "upgrade this project"
            )
        state = load_file(folder / "artifacts" / "weights.safetensors")
        recipe = yaml.safe_load((folder / "artifacts" / "config.yaml").read_text(encoding="utf-8"))
    return LoadedDetector(
        about["spec"], about["classes"], state, recipe["evaluate"], about.get("fit", "stretch")
    )
