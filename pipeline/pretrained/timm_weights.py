"""The weights that timm publishes for its networks, fetched and cached by timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.backbones.timm import check_timm
from model.names import TIMM_PREFIX
from model.published import Normalisation
from pipeline.errors import OutageError, UserError
from pipeline.pretrained.download import weights_cache
from pipeline.pretrained.normalisation import fold_normalisation
from pipeline.pretrained.weights import Weights
from pipeline.storage.redact import error_line


def read_timm(name: str) -> Weights:
    """Read timm's own weights of a network of timm, with its names of tensors.

    A file in the cache of this project is used instead of a download. Raises UserError if timm
    cannot be imported or publishes none, OutageError if they cannot be fetched.
    """
    try:
        timm = check_timm(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    described = timm.get_pretrained_cfg(name)
    if described is None or not described.has_weights:
        raise UserError(
            f"timm publishes no weights for {name}; timm.list_models(pretrained=True) lists those "
            "with some"
        )
    path = weights_cache() / f"timm-{name}.safetensors"
    given = {"pretrained_cfg_overlay": {"file": str(path)}} if path.is_file() else {}
    try:
        network = timm.create_model(name, pretrained=True, **given)
    except Exception as error:  # of several clients
        raise OutageError(
            f"the weights of {TIMM_PREFIX}{name} cannot be loaded: {error_line(error)}; without "
            f"internet access, put model.safetensors of https://huggingface.co/"
            f"{described.hf_hub_id or name} there as {path}"
        ) from None
    licence = described.license or "licence not stated"
    source = f"timm's weights of {described.hf_hub_id or name} ({licence})"
    return Weights(source, fold_normalisation(network.state_dict(), _normalisation(network)))


def _normalisation(network: Any) -> Normalisation | None:
    """Return what a network of timm expects; None if its first layer is not one convolution."""
    expected = network.pretrained_cfg
    conv = expected["first_conv"]
    modules = dict(network.named_modules())
    if not isinstance(conv, str) or not isinstance(modules.get(conv), nn.Conv2d):
        return None
    names = list(modules)
    behind = (name for name in names[names.index(conv) + 1 :] if _has_values(modules[name]))
    norm = next(behind, None)
    is_norm = norm is not None and isinstance(modules[norm], nn.BatchNorm2d)
    return Normalisation(
        mean=_pixels(expected["mean"]),
        std=_pixels(expected["std"]),
        conv=conv,
        norm=norm if is_norm else None,
    )


def _has_values(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _pixels(values: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = (value * 255 for value in values)
    return red, green, blue
