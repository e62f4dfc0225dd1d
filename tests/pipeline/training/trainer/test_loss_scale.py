"""Training in fp16: an overflow skips the update, and the scale of the loss is part of a state."""

import copy
from typing import Any

import pytest
import torch

from pipeline.training.trainer.gradient_check import NonFiniteGradientError
from pipeline.training.trainer.loss_scale import MIN_SCALE
from pipeline.training.trainer.trainer import Trainer
from tests.pipeline.training.trainer.test_gradient_check import without_finite_gradient
from tests.pipeline.training.trainer.test_trainer import batch, make_trainer, weights


def fp16_trainer(**train: Any) -> Trainer:
    return make_trainer(precision="fp16", momentum=0.9, lr=0.01, **train)


def set_scale(trainer: Trainer, value: float) -> None:
    trainer.loss_scale.load({**trainer.loss_scale.state(), "scale": value})


def momentum(trainer: Trainer) -> torch.Tensor:
    states = trainer.optimizer.state.values()
    return torch.cat([state["momentum_buffer"].flatten() for state in states])


@pytest.mark.parametrize("fused", [False, True])  # True: the implementation on GPUs
def test_overflow_skips_the_update_and_halves_the_scale(fused: bool) -> None:
    trainer = fp16_trainer()
    if fused:
        trainer.optimizer.param_groups[0]["fused"] = trainer.optimizer.param_groups[1]["fused"] = (
            True
        )
        trainer.optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    set_scale(trainer, 2.0**120)
    before = weights(trainer)
    parts = trainer.step(batch())
    assert parts["loss_scale"] == 2.0**120 and parts["gradient_norm"] == 0
    assert torch.equal(weights(trainer), before) and not momentum(trainer).any()
    assert float(trainer.loss_scale.value()) == 2.0**119
    assert (trainer.step_count, trainer.schedule.last_epoch) == (1, 1)
    set_scale(trainer, 8.0)
    assert trainer.step(batch())["gradient_norm"] > 0
    assert not torch.equal(weights(trainer), before) and momentum(trainer).isfinite().all()


def test_fp16_step_is_the_step_up_to_rounding() -> None:
    full, half = make_trainer(momentum=0.9, lr=0.01), fp16_trainer()
    set_scale(half, 8.0)
    start = weights(full)
    full.step(batch())
    half.step(batch())
    change, half_change = weights(full) - start, weights(half) - start
    assert torch.cosine_similarity(change, half_change, dim=0) > 0.99
    assert float(half_change.norm() / change.norm()) == pytest.approx(1.0, abs=0.05)


def test_gradient_that_no_scale_makes_finite_is_reported() -> None:
    trainer = fp16_trainer(skip_non_finite=1)
    set_scale(trainer, MIN_SCALE)
    with without_finite_gradient(trainer), pytest.raises(NonFiniteGradientError, match="step 0"):
        trainer.step(batch())
    assert trainer.skip_step()
    trainer.step(batch())  # the scaler accepts another step
    assert trainer.step_count == 2


def test_resume_restores_the_scale_and_continues_with_the_same_bits() -> None:
    one, other = fp16_trainer(), fp16_trainer(seed=5)
    set_scale(one, 1024.0)
    for _ in range(2):
        one.step(batch())
    other.load(copy.deepcopy(one.state()))
    assert other.loss_scale.state() == one.loss_scale.state()
    for _ in range(2):
        assert one.step(batch())["loss_scale"] == other.step(batch())["loss_scale"] == 1024.0
    assert torch.equal(weights(one), weights(other))


def test_state_of_another_precision_can_be_resumed() -> None:
    full, half = make_trainer(momentum=0.9), fp16_trainer()
    full.step(batch())
    half.load(copy.deepcopy(full.state()))
    assert torch.equal(weights(half), weights(full))
    half.step(batch())
    full.load(copy.deepcopy(half.state()))
    former = {key: value for key, value in full.state().items() if key != "loss_scale"}
    half.load(copy.deepcopy(former))  # of a version without fp16
