"""Start a detector from the weights that ``model.init`` names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model import Detector, build_detector
from model.published import PUBLISHED
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.pretrained.published import read_published
from pipeline.pretrained.read import read_weights
from pipeline.pretrained.transfer import TransferReport, transfer


def start_from(
    config: Config, detector: Detector, classes: Sequence[str], tracking_uri: str | None = None
) -> TransferReport:
    """Load the configured weights into a detector, and return which ones fitted.

    Raises UserError if they cannot be read or belong to another backbone.
    """
    init = config.model.init
    assert init is not None, "the caller checks it"
    if init in PUBLISHED:
        weights = read_published(init, config.model.backbone)
    else:
        weights = read_weights(init, config.model.init_sha256, tracking_uri)
    return transfer(detector, weights, classes)


def check_start(config: Config, classes: Sequence[str], tracking_uri: str | None = None) -> None:
    """Raise UserError now for what a worker would raise at its start; keeps no weights.

    That is an impossible network, and what `start_from` raises.
    """
    try:
        with torch.device("meta"):  # shapes without values: nothing is computed
            detector = build_detector(**config.model.network(), num_classes=len(classes))
    except ValueError as error:
        raise UserError(f"model: {error}") from None
    if config.model.init is None:
        return
    start_from(config, detector, classes, tracking_uri)
