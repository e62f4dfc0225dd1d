"""Load a trained detector: a registered version, the folder of one, a checkpoint or a run."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from pipeline.checkpoints.format import (
    META,
    load_averaged_weights,
    load_meta,
)
from pipeline.checkpoints.store import CheckpointStore, by_score
from pipeline.config import DetectorSpec, EvaluateConfig, RegistryConfig
from pipeline.errors import OutageError, UserError
from pipeline.registry.description import DetectorDescription, PredictionDefaults
from pipeline.registry.integrity import COMPILED, HASH_TAG, verify
from pipeline.safe_yaml import YamlError, load_yaml
from pipeline.storage.document import DocumentError
from pipeline.storage.folder import absolute, join
from pipeline.storage.redact import error_line, mask
from pipeline.tracking import connect, resolve_uri
from pipeline.tracking.client import store_errors
from pipeline.tracking.upload import is_rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class LoadedDetector(NamedTuple):
    """A trained detector; ``build_detector`` with its spec accepts the state."""

    uri: str
    """The model as it was found: for an alias the version, for a run its selected checkpoint."""
    spec: DetectorSpec
    classes: list[str]
    state: dict[str, Tensor]
    evaluate: dict[str, Any]
    """The section ``evaluate`` of the configuration with which it was trained."""
    fit: Literal["stretch", "letterbox"]
    """How images are fitted to the input."""
    defaults: PredictionDefaults
    """The parameters of a prediction unless the caller sets them."""
    temperature: float | None = None
    """Divides the logits of calibrated scores; None if none was fitted."""
    score_thresholds: Mapping[str, float] = MappingProxyType({})
    """By class, of uncalibrated scores, instead of the default; see `jobs.thresholds`."""


def fetch_model(model_uri: str, folder: Path, tracking_uri: str | None = None) -> Path:
    """Return the local folder of a model, downloaded to ``folder`` if it is a model URI.

    A model is ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a folder. In contrast to MLflow's
    own resolution, this needs no process-wide tracking URI, and errors list the names that exist.
    Raises UserError, also if a bundle was changed after its registration, and OutageError if the
    registry does not respond.
    """
    if not model_uri.startswith("models:"):
        if not (Path(model_uri) / "MLmodel").is_file():
            raise UserError(
                f"{model_uri} is not a model; give models:/NAME@champion or the folder of a model"
            )
        verify(Path(model_uri), None, model_uri)
        return Path(model_uri)
    uri = tracking_uri or resolve_uri()
    client = connect(uri)
    from mlflow.artifacts import download_artifacts

    with store_errors(uri):
        name, version = _find_version(client, uri, model_uri)
        source = client.get_model_version_download_uri(name, str(version))
        expected = client.get_model_version(name, str(version)).tags.get(HASH_TAG)
    try:
        found = Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri))
    except Exception as error:
        absent = "No such" in str(error) or isinstance(error, FileNotFoundError)
        kind = UserError if absent or is_rejected(error) else OutageError
        raise kind(f"{model_uri}: cannot read its files at {mask(source)}: {error}") from None
    verify(found, expected, f"models:/{name}/{version}")
    for compiled in list(found.rglob(COMPILED)):  # not in the manifest, but Python would run it
        shutil.rmtree(compiled)
    return found


def find_version(model_uri: str, tracking_uri: str | None = None) -> tuple[str, int]:
    """Return name and version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises UserError, and OutageError if the registry does not respond.
    """
    uri = tracking_uri or resolve_uri()
    client = connect(uri)
    with store_errors(uri):
        return _find_version(client, uri, model_uri)


def get_aliases(client: MlflowClient, uri: str, name: str) -> dict[str, int]:
    """Return the versions of a model by alias.

    Raises UserError listing the registered models if ``name`` is not one of them.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if not is_rejected(error):
            raise
        known = sorted(model.name for model in client.search_registered_models())
        listed = f"registered: {', '.join(known)}" if known else "none is registered"
        raise UserError(f"model {name!r} does not exist in {mask(uri)}; {listed}") from None
    return {alias: int(version) for alias, version in model.aliases.items()}


def check_version(client: MlflowClient, name: str, version: int) -> None:
    """Raise UserError listing the existing versions of a model if this one does not exist."""
    found = client.search_model_versions(f"name='{name}'")
    versions = sorted(int(item.version) for item in found)
    if version not in versions:
        listed = ", ".join(map(str, versions)) or "none"
        raise UserError(f"{name} has no version {version}; versions: {listed}")


def read_description(folder: Path, model_uri: str) -> DetectorDescription:
    """Read ``detector.json`` in the folder of a model. Raises UserError."""
    path = folder / "artifacts" / "detector.json"
    if not path.is_file():
        raise UserError(f"{model_uri} is not a detector of this project: detector.json is missing")
    try:
        return DetectorDescription.parse(path.read_bytes(), f"{model_uri}: detector.json")
    except DocumentError as error:
        raise UserError(str(error)) from None


def load_detector(model_uri: str, tracking_uri: str | None = None) -> LoadedDetector:
    """Load spec, classes and weights of a detector without running code of a bundle.

    The model is ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, the folder of such a version, the
    folder of a checkpoint, or that of a run: then its checkpoint of the highest score on
    ``data.val``, or the last one if none was evaluated. Raises UserError, and OutageError if a
    store does not respond.
    """
    if is_bundle(model_uri):
        return _load_bundle(model_uri, tracking_uri)
    return _load_checkpoint(checkpoint_folder(model_uri))


def is_bundle(model_uri: str) -> bool:
    """Return whether a URI is of a registered version or its folder, not of a checkpoint or run."""
    return model_uri.startswith("models:") or (Path(model_uri) / "MLmodel").is_file()


def checkpoint_folder(uri: str) -> str:
    """Return the checkpoint that a URI names: itself, or the selected one of a run's folder.

    Raises UserError if there is none.
    """
    store = CheckpointStore(absolute(uri))
    try:
        if store.storage.exists(META):
            return uri
        saved = store.saved()
    except OutageError:
        raise
    except OSError as error:
        raise UserError(f"{mask(uri)}: cannot be read: {error_line(error)}") from None
    if not saved:
        missing = "://" not in uri and not Path(uri).is_dir()
        raise UserError(
            f"{mask(uri)} {'does not exist' if missing else 'contains no checkpoint'}; give "
            "models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of a version, a run or a "
            "checkpoint"
        )
    return join(uri, by_score(saved)[0].name)


def _load_checkpoint(folder: str) -> LoadedDetector:
    try:
        meta = load_meta(folder)
        state = load_averaged_weights(folder)
    except OutageError:
        raise
    except OSError as error:
        raise UserError(f"{mask(folder)}: cannot be read: {error_line(error)}") from None
    recorded = meta.config.get("evaluate", {})
    evaluate = {name: recorded[name] for name in EvaluateConfig.model_fields if name in recorded}
    fit = meta.config.get("data", {}).get("fit", "stretch")
    settings = EvaluateConfig(**evaluate)
    registry = meta.config.get("registry", {})
    threshold = registry.get("score_threshold", RegistryConfig().score_threshold)
    defaults = PredictionDefaults(
        score_threshold=threshold,
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
    )
    return LoadedDetector(
        folder, meta.spec, meta.classes, state, evaluate, fit, defaults, meta.temperature
    )


def _load_bundle(model_uri: str, tracking_uri: str | None) -> LoadedDetector:
    from safetensors.torch import load_file

    if model_uri.startswith("models:"):
        name, version = find_version(model_uri, tracking_uri)
        model_uri = f"models:/{name}/{version}"  # an alias may move
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_model(model_uri, Path(scratch), tracking_uri)
        description = read_description(folder, model_uri)
        state = load_file(folder / "artifacts" / "weights.safetensors")
        try:
            recipe = load_yaml((folder / "artifacts" / "config.yaml").read_bytes())
        except YamlError as error:
            raise UserError(f"{model_uri}: config.yaml cannot be read: {error}") from None
    return LoadedDetector(
        model_uri,
        description.spec,
        description.classes,
        state,
        recipe["evaluate"],
        description.fit,
        description.defaults,
        description.temperature,
        description.score_thresholds,
    )


def _find_version(client: MlflowClient, uri: str, model_uri: str) -> tuple[str, int]:
    match = _MODEL_URI.fullmatch(model_uri)
    if match is None:
        raise UserError(
            f"{model_uri!r} is not a model URI; write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    name, alias, version = match["name"], match["alias"], match["version"]
    aliases = get_aliases(client, uri, name)
    if alias is None:
        check_version(client, name, int(version))
        return name, int(version)
    if alias not in aliases:
        listed = ", ".join(sorted(aliases)) or "none; python -m jobs.promote sets one"
        raise UserError(f"{name} has no alias {alias!r}; aliases: {listed}")
    return name, aliases[alias]
