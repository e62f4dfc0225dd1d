"""Which steps end an epoch, are evaluated and are saved."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.data.loading.sample_order import total_steps
from pipeline.training.step_schedule import StepSchedule


def make_schedule(samples: int, val: str | None = "val", **train: float) -> StepSchedule:
    return StepSchedule(Config.from_dict({"train": train, "data": {"val": val}}), samples)


def test_epochs_end_as_in_the_global_order() -> None:
    schedule = make_schedule(20, epochs=3, batch_size=8)
    assert schedule.total_steps == math.ceil(60 / 8)
    assert schedule.checkpoint_steps == {3, 5, 8}
    assert schedule.epoch(8) == pytest.approx(3.2)


@pytest.mark.parametrize("samples", [1, 7, 120, 123, 999, 10**7])
def test_epochs_are_raised_to_the_minimum_of_steps(samples: int) -> None:
    schedule = make_schedule(samples, epochs=2, batch_size=8, min_steps=1000)
    assert schedule.total_steps == max(1000, total_steps(2, samples, 8))
    assert max(schedule.checkpoint_steps) == schedule.total_steps


def test_fractions_of_epochs_and_the_last_step_are_saved() -> None:
    schedule = make_schedule(20, epochs=1.3, batch_size=4, checkpoint_every=0.5)
    assert schedule.total_steps == 7
    assert schedule.checkpoint_steps == {3, 5, 7}


def test_set_smaller_than_a_batch_is_trained_on() -> None:
    schedule = make_schedule(3, epochs=4, batch_size=8)
    assert schedule.total_steps == 2
    assert schedule.checkpoint_steps == {1, 2}


def test_checkpoint_steps_are_added_to_epochs() -> None:
    schedule = make_schedule(20, val=None, epochs=2, batch_size=4, checkpoint_steps=3)
    assert schedule.checkpoint_steps == {3, 5, 6, 9, 10}


def test_without_data_val_no_step_is_evaluated() -> None:
    assert (
        make_schedule(20, val=None, epochs=3, batch_size=4, checkpoint_every=3).evaluation_steps
        == set()
    )
    assert make_schedule(
        20, val=None, epochs=3, batch_size=4, checkpoint_every=3
    ).checkpoint_steps == {15}


@given(
    samples=st.integers(1, 500),
    batch=st.integers(1, 64),
    epochs=st.integers(1, 60).map(lambda tenths: tenths / 10),
    every=st.integers(1, 30).map(lambda tenths: tenths / 10),
)
def test_last_step_is_always_saved(samples: int, batch: int, epochs: float, every: float) -> None:
    schedule = make_schedule(samples, epochs=epochs, batch_size=batch, checkpoint_every=every)
    assert schedule.total_steps == total_steps(epochs, samples, batch)
    assert max(schedule.checkpoint_steps) == schedule.total_steps
    assert min(schedule.checkpoint_steps) > 0
