"""The failure policy: what restarts the workers, how often, and after which pause."""

import pickle
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.errors import OutageError, TrainingFailed, TrainingStopped, UserError
from pipeline.training.error_hints import LOST_WORKER, UnrecoverableFailure
from pipeline.training.ray_backend import restart_pause
from pipeline.training.ray_backend import restart_policy as module
from pipeline.training.ray_backend.restart_policy import RestartPolicy

RETRY, RAISE = ray_private_api.failure_decision().RETRY, ray_private_api.failure_decision().RAISE
OUTAGE, BUG = OutageError("http://store: status 503 (9 attempts)"), RuntimeError("a bug")
LOST = TrainingFailed(f"rank 0 {LOST_WORKER}")


class Cluster:
    """The parts of a Ray cluster that the policy uses: its clock, nodes and key-value store."""

    def __init__(self) -> None:
        self.now, self.dead, self.values = 0.0, set[str](), dict[bytes, bytes]()
        self.dies_at: float | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.dies_at is not None and self.now >= self.dies_at:
            self.dead.add("silent")

    def pause(self) -> float:
        (value,) = self.values.values() or [b"0"]
        return float(value)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    for one in (module, restart_pause):
        monkeypatch.setattr(one.time, "monotonic", lambda: found.now)
        monkeypatch.setattr(one.time, "sleep", found.sleep)
    monkeypatch.setattr(module, "dead_nodes", lambda: set(found.dead))
    monkeypatch.setattr(restart_pause, "stop_requested", lambda uri: found.now > 1e6)
    private = restart_pause.ray_private_api
    monkeypatch.setattr(private, "kv_put", lambda k, v, n: found.values.update({n + k: v}))
    monkeypatch.setattr(private, "kv_get", lambda k, n: found.values.get(n + k))
    monkeypatch.setattr(private, "kv_delete", lambda k, n: found.values.pop(n + k, None))
    return found


def policy(max_failures: int = 0, max_outages: int = 0) -> RestartPolicy:
    config: Any = FailureConfig
    made = RestartPolicy(config(max_failures=max_failures), "uri", max_outages)
    restored: RestartPolicy = pickle.loads(pickle.dumps(made))  # noqa: S301
    return restored


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(errors)))


@pytest.mark.parametrize("mistake", [UserError("wrong path"), UnrecoverableFailure("not finite")])
def test_mistake_is_never_restarted(cluster: Cluster, mistake: Exception) -> None:
    unlimited = policy(-1, -1)
    for error in (failed(mistake), failed(LOST, mistake), failed(OUTAGE, mistake)):
        assert unlimited.make_decision(error) == RAISE


def test_failures_are_limited(cluster: Cluster) -> None:
    limited = policy(max_failures=2)
    assert [limited.make_decision(failed(BUG)) for _ in range(3)] == [RETRY, RETRY, RAISE]
    assert policy(0).make_decision(failed(BUG)) == RAISE


def test_minus_one_means_no_limit(cluster: Cluster) -> None:
    unlimited = policy(-1, -1)
    assert {unlimited.make_decision(failed(BUG)) for _ in range(100)} == {RETRY}
    assert {unlimited.make_decision(failed(LOST, OUTAGE)) for _ in range(100)} == {RETRY}


def test_outages_have_their_own_limit(cluster: Cluster, capsys: Any) -> None:
    limited = policy(max_failures=1, max_outages=2)
    errors = [failed(OUTAGE, LOST), failed(BUG), failed(OUTAGE), failed(OUTAGE)]
    assert [limited.make_decision(error) for error in errors] == [RETRY, RETRY, RETRY, RAISE]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("outage 1 of 2: http://store: status 503 (9 attempts); the workers res")
    assert second.startswith("outage 2 of 2: ")


def test_pauses_grow_until_the_workers_have_trained_for_a_while(cluster: Cluster) -> None:
    endless, pauses = policy(max_outages=-1), []
    for _ in range(8):
        endless.make_decision(failed(OUTAGE))
        pauses.append(cluster.pause())
        cluster.now += cluster.pause() + 90.0  # retries of the store
    for pause, base in zip(pauses, [10, 20, 40, 80, 160, 300, 300, 300], strict=True):
        assert base / 2 <= pause <= base
    cluster.now += 300.0 + module.RECOVERED_SECONDS
    endless.make_decision(failed(OUTAGE))
    assert cluster.pause() <= 10.0
    endless.failure_config.max_failures = 1
    endless.make_decision(failed(BUG))
    assert cluster.pause() == 0.0


def test_workers_wait_for_the_pause_or_sigterm(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart_pause.wait_for_pause("uri", World())
    assert cluster.now == 0.0
    restart_pause.set_pause("uri", 42.0)
    restart_pause.wait_for_pause("other", World())
    assert cluster.now == 0.0
    restart_pause.wait_for_pause("uri", World())
    assert cluster.now == pytest.approx(42.0)
    monkeypatch.setattr(restart_pause, "stop_requested", lambda uri: cluster.now > 50.0)
    with pytest.raises(TrainingStopped, match="SIGTERM during an outage; run the same command"):
        restart_pause.wait_for_pause("uri", World())
    assert 50.0 < cluster.now < 51.0


@pytest.mark.parametrize("error", [failed(LOST), failed(LOST, RayActorError())])
def test_lost_nodes_do_not_use_up_the_failures(cluster: Cluster, error: WorkerGroupError) -> None:
    cluster.dead = {"before"}
    limited = policy(max_failures=1)
    for number in range(5):
        cluster.dead.add(f"node {number}")
        assert limited.make_decision(error) == RETRY
    assert limited.make_decision(failed(BUG)) == RETRY
    assert limited.make_decision(failed(BUG)) == RAISE


def test_node_that_ray_has_not_yet_noticed_is_waited_for(cluster: Cluster) -> None:
    cluster.dies_at = 15.0
    assert policy(max_failures=0).make_decision(failed(LOST)) == RETRY
    assert cluster.now == pytest.approx(15.0)


def test_lost_worker_on_a_living_node_is_a_failure(cluster: Cluster) -> None:
    cluster.dead = {"before"}
    assert policy(max_failures=0).make_decision(failed(LOST, RayActorError())) == RAISE
    cluster.dead.add("unrelated")
    assert policy(max_failures=0).make_decision(failed(BUG, LOST)) == RAISE


def test_errors_of_the_controller_keep_the_decisions_of_ray(cluster: Cluster) -> None:
    startup = ControllerError(ray_private_api.startup_timeout_error()(2))
    limited = policy()
    assert {limited.make_decision(startup) for _ in range(9)} == {RETRY}
    assert limited.make_decision(ControllerError(ValueError("a callback"))) == RAISE
