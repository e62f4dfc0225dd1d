"""Read weights to start from: a file, a URL, a registered version, a checkpoint or a run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pipeline.errors import UserError
from pipeline.pretrained.download import download
from pipeline.pretrained.normalisation import fold_normalisation
from pipeline.pretrained.published import known_file
from pipeline.pretrained.weights import Weights, read_file
from pipeline.registry.load import load_detector
from pipeline.storage.checksum import file_sha256


def read_weights(uri: str, sha256: str | None = None, tracking_uri: str | None = None) -> Weights:
    """Read the weights at a URI onto the CPU; unpickles tensors and containers only.

    The URI is a ``.pth``, ``.pt`` or ``.safetensors`` file or http(s) URL, ``models:/NAME@ALIAS``,
    the folder of a checkpoint (or its URI in shared storage), or the folder of a run: then its
    checkpoint of the highest score on ``data.val``, or the last one if none was evaluated. Raises
    UserError, and OutageError if a server does not respond.
    """
    if uri.startswith(("http://", "https://")):
        if sha256 is None:
            raise UserError(f"{uri}: a URL needs model.init_sha256")
        sha256 = sha256.lower()
        known = known_file(sha256)
        path = download(uri, sha256, name=known.file if known else None)
        return Weights(uri, _as_published(read_file(path, uri), sha256))
    path = Path(uri)
    if path.is_file():
        found = file_sha256(path)
        if sha256 and found != sha256.lower():
            raise UserError(f"{uri} has sha256 {found}, not the expected {sha256}")
        return Weights(uri, _as_published(read_file(path, uri), found))
    if sha256:
        raise UserError(f"{uri}: model.init_sha256 is only for a file or a URL")
    if "://" not in uri and not uri.startswith("models:") and not path.is_dir():
        raise UserError(
            f"model.init {uri} does not exist; give a .pth or .safetensors file, an http(s) URL, "
            "models:/NAME@ALIAS, or the folder of a run or checkpoint"
        )
    loaded = load_detector(uri, tracking_uri)
    spec = loaded.spec
    return Weights(loaded.uri, loaded.state, spec.backbone, loaded.classes, spec.anchor_shapes)


def _as_published(state: dict[str, Tensor], sha256: str) -> dict[str, Tensor]:
    """Return the state, for the detector's pixels if it is a published file that has others."""
    known = known_file(sha256)
    return fold_normalisation(state, known.normalisation) if known else state
