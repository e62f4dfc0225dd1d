"""The time that detectors take for one image, measured in turn so that a busy machine is fair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from model import Detector
from pipeline.config import EvaluateConfig
from pipeline.evaluation.evaluate import infer

ROUNDS, WARM_UP_ROUNDS = 20, 3


def seconds_per_image(
    detectors: Sequence[tuple[Detector, EvaluateConfig]], device: torch.device, rounds: int = ROUNDS
) -> list[float]:
    """Return the median seconds of each detector, post-processing included, for single images.

    The images are noise, the same for all detectors that have the same input size.
    """
    inputs = []
    for detector, _ in detectors:
        side = int(detector.spec["image_size"])
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 255, (1, 3, side, side), dtype=torch.uint8, generator=generator)
        inputs.append(image.to(device))
    times: list[list[float]] = [[] for _ in detectors]
    with torch.no_grad():
        for number in range(WARM_UP_ROUNDS + rounds):
            for (detector, config), image, own in zip(detectors, inputs, times, strict=True):
                began = time.perf_counter()
                infer(detector, image, config)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number >= WARM_UP_ROUNDS:
                    own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]
