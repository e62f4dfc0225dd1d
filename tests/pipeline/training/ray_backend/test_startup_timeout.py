"""What Ray Train's controller hears while there is no room for workers."""

import logging
import logging.handlers
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RunningState,
)
from ray.train.v2.api.exceptions import ControllerError

from pipeline.config import Config
from pipeline.distributed.ray_cluster import longest_wait
from pipeline.errors import TrainingFailed, TrainingStopped
from pipeline.training.ray_backend import startup_timeout as waiting
from pipeline.training.ray_backend.startup_timeout import Waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping alone, as one number in a list."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting.time, "sleep", sleep)
    monkeypatch.setattr(waiting, "stop_wanted", lambda uri: False)
    return now


def until_it_ends(callback: Waiting, state: Any) -> None:
    for _ in range(100_000):
        callback.after_controller_state_update(state, state)


def test_a_wait_is_told_every_minute_and_ends(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Waiting("uri", 2, 600.0)
    with pytest.raises(TrainingFailed, match="no room for 2 workers for 10 minutes; add nodes"):
        until_it_ends(callback, InitializingState())
    assert 600 < clock[0] < 610
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("no room for 2 workers for 1 minutes; giving up after 10 ")


def test_every_wait_begins_anew(clock: list[float]) -> None:
    callback, state = Waiting("uri", 2, 100.0), InitializingState()
    for _ in range(5):
        callback.after_controller_state_update(state, state)
        clock[0] += 90.0
        callback.after_controller_state_update(state, state)
        callback.after_controller_state_update(state, RunningState())
    callback.after_controller_state_update(state, state)
    clock[0] += 101.0
    with pytest.raises(TrainingFailed):
        callback.after_controller_state_update(state, state)


def test_sigterm_ends_a_wait_at_once(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "stop_wanted", lambda uri: uri == "one")
    state = InitializingState()
    Waiting("one", 2, 600.0).after_controller_state_update(state, RunningState())
    Waiting("two", 2, 600.0).after_controller_state_update(state, state)
    with pytest.raises(TrainingStopped, match="goes on"):
        Waiting("one", 2, 600.0).after_controller_state_update(state, state)


def rescheduled(callback: Waiting, error: Exception) -> None:
    """What the controller tells after workers could not be started."""
    state = ReschedulingState(training_failed_error=ControllerError(error))
    callback.after_controller_state_update(InitializingState(), state)
    callback.after_controller_state_update(state, state)


def test_workers_that_crash_at_their_start_end_it_with_their_reason(clock: list[float]) -> None:
    callback = Waiting("uri", 2, 600.0)
    for _ in range(5):
        rescheduled(callback, WorkerGroupStartupTimeoutError(2))  # no room is no crash
    crash = WorkerGroupStartupFailedError("a worker died")
    crash.__cause__ = ImportError("Traceback:\nno module named x")
    rescheduled(callback, crash)
    rescheduled(callback, crash)
    with pytest.raises(TrainingFailed, match="not be started in 3 tries: no module named x; the"):
        rescheduled(callback, crash)
    assert clock[0] < 60


def test_workers_that_have_trained_make_crashes_count_anew(clock: list[float]) -> None:
    callback = Waiting("uri", 2, 600.0)
    for _ in range(4):
        rescheduled(callback, WorkerGroupStartupFailedError("a worker died"))
        rescheduled(callback, WorkerGroupStartupFailedError("a worker died"))
        callback.after_controller_state_update(InitializingState(), RunningState())


def test_no_room_is_told_without_rays_traceback() -> None:
    Waiting("uri", 2, 600.0).after_controller_start(None)
    logger = logging.getLogger("ray.train.v2._internal.execution.controller.controller")
    handler = logging.handlers.BufferingHandler(9)  # Ray's loggers keep to themselves
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        for error in (WorkerGroupStartupTimeoutError(2), RuntimeError("another")):
            try:
                raise error
            except Exception:
                logger.exception("an error")
    finally:
        logger.removeHandler(handler)
    (record,) = handler.buffer
    assert record.exc_info is not None and "another" in str(record.exc_info[1])


def test_the_wait_is_ten_minutes_or_what_the_configuration_says() -> None:
    assert longest_wait(Config.from_dict({}).ray) == 600.0
    assert longest_wait(Config.from_dict({"ray": {"wait_for_nodes": 30}}).ray) == 1800.0
