"""Clusters that this process starts."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.config import RayConfig
from pipeline.distributed.ray_cluster import DASHBOARD_VARIABLE, ray_cluster
from pipeline.errors import OutageError

START_RAY = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_cluster() -> Iterator[None]:
    """Run the Ray of another user on this machine."""
    command = [sys.executable, "-c", START_RAY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == "started\n"
        yield
        other.stdin.close()


@pytest.mark.integration
@pytest.mark.usefixtures("another_cluster")
def test_processes_of_a_sweep_find_their_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.util.state import get_actor

    class Looker:
        def own_state(self) -> str:
            return str(get_actor(ray.get_runtime_context().get_actor_id(), timeout=30).state)

    monkeypatch.setenv(DASHBOARD_VARIABLE, "http://another.invalid:8265")
    with ray_cluster(RayConfig(workers=1), sweep=True):
        looker = ray.remote(num_cpus=0)(Looker).remote()
        assert ray.get(looker.own_state.remote()) == "ALIVE"
    assert os.environ[DASHBOARD_VARIABLE] == "http://another.invalid:8265"


def test_machine_too_busy_for_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    expected = r"within 30 s, .* repeat the command"
    with pytest.raises(OutageError, match=expected), ray_cluster(RayConfig()):
        pass
