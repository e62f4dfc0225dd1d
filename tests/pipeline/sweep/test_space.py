"""The search space: checked against the configuration before a trial starts."""

from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.sweep.space import build_space
from pipeline.sweep.sweep import concurrency


def config(space: dict[str, Any], **ray: Any) -> Config:
    return Config.from_dict({"sweep": {"space": space}, "ray": ray})


def test_fields_of_any_section_can_be_searched() -> None:
    space = build_space(
        config(
            {
                "assign.sigma": {"uniform": [1.5, 4.0]},
                "train.lr": {"loguniform": [0.001, 0.1]},
                "train.batch_size": {"randint": [2, 9]},
                "assign.name": {"choice": ["max_iou", "mutual_guidance"]},
            }
        )
    )
    assert set(space) == {"assign.sigma", "train.lr", "train.batch_size", "assign.name"}
    assert all(1.5 <= space["assign.sigma"].sample() <= 4.0 for _ in range(20))
    assert {space["assign.name"].sample() for _ in range(40)} == {"max_iou", "mutual_guidance"}


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, "sweep.space is empty"),
        ({"assign.sigm": {"uniform": [1, 2]}}, "assign.sigm: there is no such field"),
        ({"sigma": {"uniform": [1, 2]}}, "sigma: there is no such field"),
        ({"sweep.trials": {"choice": [1]}}, "a sweep cannot search itself"),
        ({"assign.sigma": {"normal": [1, 2]}}, "expected one of uniform, loguniform"),
        ({"assign.sigma": {"uniform": [2, 3], "choice": [2]}}, "expected one of"),
        ({"assign.sigma": {"uniform": [2]}}, r"uniform takes \[low, high\], got \[2\]"),
        ({"assign.name": {"choice": []}}, "choice takes a list of values"),
        ({"assign.name": {"choice": ["max_iou", "magic"]}}, "'magic' does not exist"),
        ({"assign.sigma": {"uniform": [0.5, 2]}}, r"assign\.sigma: got 0\.5"),
    ],
)
def test_mistake_names_the_field(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build_space(config(space))


@pytest.mark.parametrize(
    ("ray", "cluster", "expected"),
    [
        ({"workers": 1, "cpus_per_worker": 0.9}, {"CPU": 2}, 2),
        ({"workers": 1, "cpus_per_worker": 1.0}, {"CPU": 2}, 1),  # trials take a fraction too
        ({"workers": 2, "cpus_per_worker": 4}, {"CPU": 64}, 7),
        (
            {"workers": [1, 4], "cpus_per_worker": 4},
            {"CPU": 64},
            3,
        ),  # of the largest number
        ({"workers": 2, "cpus_per_worker": 1, "gpu": True}, {"CPU": 64, "GPU": 8}, 4),
        ({"workers": 2, "cpus_per_worker": 1, "gpu": "auto"}, {"CPU": 64, "GPU": 1}, 31),
    ],
)
def test_concurrency_is_the_number_of_whole_trials_that_fit(
    ray: dict[str, Any], cluster: dict[str, float], expected: int
) -> None:
    assert concurrency(config({}, **ray), cluster) == expected


def test_concurrency_is_limited_and_at_least_one() -> None:
    limited = Config.from_dict({"sweep": {"concurrency": 2}, "ray": {"cpus_per_worker": 1}})
    assert concurrency(limited, {"CPU": 16}) == 2
    with pytest.raises(UserError, match=r"one trial takes 4 x 1 CPUs, more than the cluster has"):
        concurrency(config({}, workers=4), {"CPU": 2})
