"""Gradients that are not finite are found without a wait for the device."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.distributed.world import World
from pipeline.training.trainer.gradient_check import NonFiniteGradientError
from pipeline.training.trainer.trainer import Trainer
from tests.pipeline.training.trainer.test_trainer import batch, make_trainer


@pytest.mark.parametrize(
    "assign",
    [
        *({"name": name} for name in ("max_iou", "mutual_guidance", "mutual_guidance_soft")),
        {"name": "sim_ota"},
        {"name": "task_aligned", "static_fraction": 0.0},
    ],
)
def test_step_reads_nothing_from_the_device(assign: dict[str, Any]) -> None:
    """A meta tensor has no values, so that reading one raises."""
    world = World(device=torch.device("meta"))
    trainer = make_trainer(world, {"assign": assign}, momentum=0.9, micro_batch=3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(trainer.step(batch())["loss"])
    assert trainer.step_count == 1


@contextlib.contextmanager
def without_finite_gradient(trainer: Trainer) -> Iterator[None]:
    parameter = next(trainer.detector.parameters())
    handle = parameter.register_hook(lambda gradient: gradient * float("nan"))
    try:
        yield
    finally:
        handle.remove()


def delayed_trainer() -> Trainer:
    trainer = make_trainer()
    trainer.gradient_check.delayed = True  # as on a GPU
    return trainer


def test_delayed_check_raises_in_the_next_step_with_the_batch_at_fault() -> None:
    trainer, bad = delayed_trainer(), batch()
    trainer.step(batch())
    with without_finite_gradient(trainer):
        trainer.step(bad)
    with pytest.raises(NonFiniteGradientError, match="not finite at step 1") as caught:
        trainer.step(batch())
    assert caught.value.step == 1 and caught.value.batch is bad


def test_nothing_is_saved_after_a_gradient_that_is_not_finite() -> None:
    trainer = delayed_trainer()
    trainer.step(batch())
    trainer.check_gradients()
    with without_finite_gradient(trainer):
        trainer.step(batch())
    with pytest.raises(NonFiniteGradientError, match="not finite at step 1"):
        trainer.check_gradients()
    trainer.check_gradients()  # reported once
