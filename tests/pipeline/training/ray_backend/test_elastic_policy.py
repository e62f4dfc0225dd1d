"""The number of running workers changes only after a checkpoint."""

from typing import Any

import pytest

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.training.ray_backend import resize
from pipeline.training.ray_backend.elastic_policy import ElasticPolicy

Resize, Noop = ray_private_api.scaling_decisions()


class Store:
    """The cluster's key-value store and clock."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.now = 0.0
        self.ends_at: float | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.ends_at is not None and self.now >= self.ends_at:
            self.values.clear()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found, private = Store(), ray_private_api
    monkeypatch.setattr(private, "kv_put", lambda k, v, n: found.values.update({n + k: v}))
    monkeypatch.setattr(private, "kv_get", lambda k, n: found.values.get(n + k))
    monkeypatch.setattr(private, "kv_delete", lambda k, n: found.values.pop(n + k, None))
    monkeypatch.setattr(resize.time, "monotonic", lambda: found.now)
    monkeypatch.setattr(resize.time, "sleep", found.sleep)
    return found


@pytest.fixture
def policy(store: Store, monkeypatch: pytest.MonkeyPatch) -> ElasticPolicy:
    """Return a policy whose base decides to run four workers whenever it is called."""
    decision = Resize(num_workers=4, resources_per_worker={"CPU": 1.0})
    base = ray_private_api.elastic_scaling_policy()
    for name in ("running", "non_running"):
        method = f"make_decision_for_{name}_worker_group"
        monkeypatch.setattr(base, method, lambda *_: decision)
    return ElasticPolicy(None, "uri")


def decide(policy: ElasticPolicy) -> Any:
    return policy.make_decision_for_running_worker_group(None, None)


def test_workers_change_after_the_checkpoint_is_written(
    policy: ElasticPolicy, store: Store
) -> None:
    assert resize.requested_workers("uri") is None
    for _ in range(3):
        assert isinstance(decide(policy), Noop)
    assert resize.requested_workers("uri") == 4
    assert resize.requested_workers("other") is None
    store.ends_at = 5.0  # the controller ends the workers while they hold
    resize.hold_for_resize("uri", World(), None)
    assert store.now == pytest.approx(5.0)
    resize.ray_private_api.kv_put(b"uri", b"saved", b"guidance-resize")
    assert decide(policy).num_workers == 4
    assert resize.requested_workers("uri") is None


def test_training_continues_if_the_checkpoint_cannot_be_written(
    policy: ElasticPolicy, store: Store
) -> None:
    decide(policy)
    resize.hold_for_resize("uri", World(), "the disk is full")
    assert store.now == 0.0
    assert isinstance(decide(policy), Noop)
    assert isinstance(decide(policy), Noop)  # requested again
    assert resize.requested_workers("uri") == 4


def test_workers_do_not_hold_without_end(policy: ElasticPolicy, store: Store) -> None:
    decide(policy)
    resize.hold_for_resize("uri", World(), None)
    assert resize.HOLD_SECONDS <= store.now < resize.HOLD_SECONDS + 1.0


def test_restart_withdraws_the_request(policy: ElasticPolicy, store: Store) -> None:
    decide(policy)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 4
    assert resize.requested_workers("uri") is None
    assert isinstance(decide(policy), Noop)  # a new request, not an old result
    assert resize.requested_workers("uri") == 4
