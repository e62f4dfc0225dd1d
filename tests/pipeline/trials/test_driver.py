"""How many trials run at the same time."""

from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.trials.driver import concurrency


def config(**ray: Any) -> Config:
    return Config.from_dict({"ray": ray})


@pytest.mark.parametrize(
    ("ray", "cluster", "expected"),
    [
        ({"workers": 1, "cpus_per_worker": 0.9}, {"CPU": 2}, 2),
        ({"workers": 1, "cpus_per_worker": 1.0}, {"CPU": 2}, 1),  # trials take a fraction too
        ({"workers": 2, "cpus_per_worker": 4}, {"CPU": 64}, 7),
        # Of the largest number of workers.
        ({"workers": [1, 4], "cpus_per_worker": 4}, {"CPU": 64}, 3),
        ({"workers": 2, "cpus_per_worker": 1, "gpu": True}, {"CPU": 64, "GPU": 8}, 4),
        ({"workers": 2, "cpus_per_worker": 1, "gpu": "auto"}, {"CPU": 64, "GPU": 1}, 31),
        ({"workers": 2, "cpus_per_worker": 0.9}, {"CPU": 2}, 1),  # not enough for two trials
    ],
)
def test_concurrency_is_the_number_of_whole_trials_that_fit(
    ray: dict[str, Any], cluster: dict[str, float], expected: int
) -> None:
    assert concurrency(config(**ray), [cluster]) == expected


def test_concurrency_counts_workers_that_fit_on_single_nodes() -> None:
    three = [{"CPU": 3}] * 3  # 9 CPUs, but one worker of 2 on each
    assert concurrency(config(workers=1, cpus_per_worker=2), three) == 3
    assert concurrency(config(workers=3, cpus_per_worker=2), three) == 1
    gpus = [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 2}, {"CPU": 8}]
    assert concurrency(config(workers=1, cpus_per_worker=1, gpu=True), gpus) == 3


def test_concurrency_is_limited_and_at_least_one() -> None:
    limited = Config.from_dict({"sweep": {"concurrency": 2}, "ray": {"cpus_per_worker": 1}})
    assert concurrency(limited, [{"CPU": 16}]) == 2


@pytest.mark.parametrize(
    ("ray", "nodes", "slots"),
    [
        ({"workers": 4, "cpus_per_worker": 1}, [{"CPU": 2}], 1),
        ({"workers": 1, "cpus_per_worker": 2}, [{"CPU": 2}], 0),  # a trial takes a fraction too
        ({"workers": 1, "cpus_per_worker": 3}, [{"CPU": 2}, {"CPU": 2}], 0),
        ({"workers": 2, "cpus_per_worker": 1, "gpu": True}, [{"CPU": 9, "GPU": 1}, {"CPU": 9}], 1),
    ],
)
def test_trial_that_no_nodes_can_run_is_rejected(
    ray: dict[str, Any], nodes: list[dict[str, float]], slots: int
) -> None:
    with pytest.raises(UserError, match=f"nodes for {slots} such workers; lower ray.workers"):
        concurrency(config(**ray), nodes)
