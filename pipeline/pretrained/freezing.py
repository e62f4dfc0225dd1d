"""How much of a pretrained backbone is frozen where the configuration does not say."""

from __future__ import annotations

import math

from pipeline.config import Config

# Few images do not improve edges and textures that were learned from a million. On 236 photographs,
# two frozen stages of five save a fifth of the CPU time, and the AP that they cost is within the
# noise of three seeds (docs/accuracy.md). From how many images on all stages should learn is not
# measured.
FEW_IMAGES = 1000
FROZEN_SHARE = 0.4  # of the backbone's stages, rounded down


def stages_to_freeze(config: Config, images: int) -> int:
    """Return ``model.freeze_stages``, or if it is unset, what suits ``images`` training images.

    That is 0 without starting weights, and with group norms: the scales and shifts of published
    batch norms have to be learned again for their statistics.
    """
    model = config.model
    if model.freeze_stages is not None:
        return model.freeze_stages
    if model.init is None or model.norm == "group" or images >= FEW_IMAGES:
        return 0
    from model.backbones import count_stages  # imports torch

    return math.floor(FROZEN_SHARE * count_stages(model.backbone))


def explain_freezing(config: Config, images: int) -> str | None:
    """Return a line about the stages that are frozen though ``model.freeze_stages`` is unset."""
    stages = stages_to_freeze(config, images)
    if config.model.freeze_stages is not None or not stages:
        return None
    from model.backbones import count_stages  # imports torch

    backbone = config.model.backbone
    return (
        f"frozen with the weights of model.init: {stages} of the {count_stages(backbone)} stages "
        f"of {backbone}, since there are fewer than {FEW_IMAGES} training images ({images}); to "
        "change this, set model.freeze_stages (0: train all)"
    )
