"""Steps, schedule, optimizer groups and weight average."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.config import Config, TrainConfig
from pipeline.data.loading.sample_order import total_steps
from pipeline.training.step_schedule import Steps
from pipeline.training.trainer.ema import WeightAverage
from pipeline.training.trainer.optimizer import build_optimizer, build_schedule, warmup_cosine


def steps(samples: int, val: str | None = "val", **train: float) -> Steps:
    return Steps(Config.from_dict({"train": train, "data": {"val": val}}), samples)


def test_epochs_end_where_the_global_order_says() -> None:
    plan = steps(20, epochs=3, batch_size=8)
    assert plan.total == math.ceil(60 / 8)
    assert plan.checkpoints == {3, 5, 8}
    assert plan.epoch(8) == pytest.approx(3.2)


def test_fractions_of_epochs_and_the_last_step_are_due() -> None:
    plan = steps(20, epochs=1.3, batch_size=4, checkpoint_every=0.5)
    assert plan.total == 7
    assert plan.checkpoints == {3, 5, 7}


def test_a_set_smaller_than_a_batch_still_trains() -> None:
    plan = steps(3, epochs=4, batch_size=8)
    assert plan.total == 2
    assert plan.checkpoints == {1, 2}


def test_every_so_many_steps_besides_the_epochs() -> None:
    plan = steps(20, val=None, epochs=2, batch_size=4, checkpoint_steps=3)
    assert plan.checkpoints == {3, 5, 6, 9, 10}


def test_without_a_validation_set_nothing_is_evaluated_on_the_way() -> None:
    assert steps(20, val=None, epochs=3, batch_size=4, checkpoint_every=3).evaluations == set()
    assert steps(20, val=None, epochs=3, batch_size=4, checkpoint_every=3).checkpoints == {15}


@given(
    samples=st.integers(1, 500),
    batch=st.integers(1, 64),
    epochs=st.integers(1, 60).map(lambda tenths: tenths / 10),
    every=st.integers(1, 30).map(lambda tenths: tenths / 10),
)
def test_the_last_step_of_the_loader_is_always_due(
    samples: int, batch: int, epochs: float, every: float
) -> None:
    plan = steps(samples, epochs=epochs, batch_size=batch, checkpoint_every=every)
    assert plan.total == total_steps(epochs, samples, batch)
    assert max(plan.checkpoints) == plan.total
    assert min(plan.checkpoints) > 0


def test_schedule_warms_up_and_ends_at_the_final_share() -> None:
    values = [warmup_cosine(step, 100, 10, 0.01) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_warm_up_never_takes_more_than_half_of_a_short_training() -> None:
    model = nn.Linear(2, 2)
    config = TrainConfig(warmup_steps=1000, lr=1.0)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1.0)


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, free = build_optimizer(model, TrainConfig()).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)


def test_average_follows_parameters_and_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, decay=0.9)
    start = average.module[0].weight.clone()
    with torch.no_grad():
        model[0].weight += 1.0
    model[1].running_mean += 2.0
    for _ in range(400):
        average.update(model)
    assert average.updates == 400
    torch.testing.assert_close(average.module[0].weight, start + 1.0)
    torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean)


def test_average_is_slow_at_its_full_decay() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.99)
    average.updates = 10_000
    before = average.module.weight.item()
    with torch.no_grad():
        model.weight += 1.0
    average.update(model)
    assert average.module.weight.item() - before == pytest.approx(0.01, abs=1e-5)


def test_without_decay_the_average_is_the_model() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.0)
    with torch.no_grad():
        model.weight += 1.0
    average.update(model)
    torch.testing.assert_close(average.module.weight, model.weight)
