"""A detector as it is trained: its device, memory layout, compilation, and its sync over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import Detector, build_detector
from pipeline.config import Config
from pipeline.distributed.world import World


def build_trained(config: Config, world: World, num_classes: int) -> Detector:
    """The detector with the parts frozen and the norms shared that ``config`` asks for."""
    detector = build_detector(**config.model.network(), num_classes=num_classes)
    if config.train.sync_batch_norm and world.size > 1:
        detector = _with_shared_norms(detector)
    detector.backbone.freeze(config.model.freeze_stages, config.model.freeze_norm)
    detector.to(device=world.device, memory_format=memory_format(config))  # type: ignore[call-overload]
    return detector


def _with_shared_norms(detector: Detector) -> Detector:
    """Batch norms over all ranks; names and weights stay."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if detector.spec["backbone"].startswith("timm:"):
        from timm import layers

        convert = layers.convert_sync_batchnorm  # knows norms that also activate
    shared: Detector = convert(detector)
    return shared


def memory_format(config: Config) -> torch.memory_format:
    """The layout of images and weights."""
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def distributed(detector: nn.Module, config: Config, world: World) -> nn.Module:
    """The network whose gradients are averaged over all ranks; compiled where configured."""
    network = detector
    if world.size > 1:
        network = DistributedDataParallel(
            detector,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Only rank 0's batch statistics are ever used, so ranks need not wait to copy them.
            forward_sync_buffers=False,
        )
    if config.train.compile:
        network.compile()
    return network
