"""Prepare a detector for training: device, memory layout, compilation, gradients over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import Detector, build_detector
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import UserError

MICRO_BATCH_SIZES = 4  # of a rank: shares of a batch vary by an image, and are split unevenly


def build_training_detector(config: Config, world: World, num_classes: int) -> Detector:
    """Build the detector on its device, with frozen parts and synchronised norms as configured."""
    detector = build_detector(**config.model.network(), num_classes=num_classes)
    if config.train.sync_batch_norm and world.size > 1:
        config.train.passes(world.size)  # raises UserError; torchrun decides on the number of ranks
        detector = _synchronise_norms(detector)
    detector.backbone.freeze(config.model.freeze_stages or 0, config.model.freeze_norm)
    detector.to(device=world.device, memory_format=memory_format(config))  # type: ignore[call-overload]
    return detector


def _synchronise_norms(detector: Detector) -> Detector:
    """Make batch norms use the statistics of all ranks, keeping names and weights."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if detector.spec["backbone"].startswith("timm:"):
        from timm import layers

        convert = layers.convert_sync_batchnorm  # also converts norms with an activation
    converted: Detector = convert(detector)
    return converted


def memory_format(config: Config) -> torch.memory_format:
    """Return the memory layout of images and weights."""
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def parallelize(detector: nn.Module, config: Config, world: World) -> nn.Module:
    """Return the network with gradients averaged over all ranks, compiled if configured.

    Compilation is per shape of a micro-batch. Dynamic shapes would not help: inductor compiles the
    gradient of a convolution for one side, and keeps channels last for static shapes only.

    Raises UserError if synchronised norms are configured and there are no GPUs.
    """
    network = detector
    if world.size > 1:
        if config.train.sync_batch_norm and world.device.type != "cuda":
            raise UserError("train.sync_batch_norm needs GPUs, and the workers have none")
        network = DistributedDataParallel(
            detector,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Only rank 0's batch statistics are used, so there is no need to synchronise them.
            forward_sync_buffers=False,
        )
    if config.train.compile:
        # At its limit, 8 by default, torch runs further shapes without compiling them.
        dynamo: Any = torch._dynamo.config
        shapes = MICRO_BATCH_SIZES * max(1, len(config.data.sizes))
        dynamo.recompile_limit = max(dynamo.recompile_limit, shapes)
        network.compile(dynamic=False)
    return network
