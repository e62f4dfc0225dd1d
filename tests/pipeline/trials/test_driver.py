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
    ],
)
def test_concurrency_is_the_number_of_whole_trials_that_fit(
    ray: dict[str, Any], cluster: dict[str, float], expected: int
) -> None:
    assert concurrency(config(**ray), cluster) == expected


def test_concurrency_is_limited_and_at_least_one() -> None:
    limited = Config.from_dict({"sweep": {"concurrency": 2}, "ray": {"cpus_per_worker": 1}})
    assert concurrency(limited, {"CPU": 16}) == 2
    with pytest.raises(UserError, match=r"one trial takes 4 x 1 CPUs, more than the cluster has"):
        concurrency(config(workers=4), {"CPU": 2})
