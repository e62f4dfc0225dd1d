"""The callback of Ray Train's controller while workers cannot start."""

import logging
import logging.handlers
import pickle
import sys
from typing import Any

import pytest
from ray.train.v2.api.exceptions import ControllerError

from pipeline.config import Config
from pipeline.distributed import ray_private_api
from pipeline.distributed.ray_cluster import longest_wait
from pipeline.errors import TrainingFailed, TrainingStopped
from pipeline.storage.redact import mask_output
from pipeline.training.ray_backend import startup_timeout as module
from pipeline.training.ray_backend.startup_timeout import StartupTimeout

STATES = ray_private_api.controller_states()
NO_RESOURCES = ray_private_api.startup_timeout_error()
CRASH = ray_private_api.startup_failed_error()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only by sleeping, as one number in a list."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module, "stop_requested", lambda uri: False)
    return now


def update_until_it_ends(callback: StartupTimeout, state: Any) -> None:
    for _ in range(100_000):
        callback.after_controller_state_update(state, state)


def test_wait_is_reported_every_minute_and_ends(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = StartupTimeout("uri", 2, 600.0)
    with pytest.raises(
        TrainingFailed, match="no resources for 2 workers for 10 minutes; add nodes"
    ):
        update_until_it_ends(callback, STATES.InitializingState())
    assert 600 < clock[0] < 610
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("no resources for 2 workers for 1 minutes; giving up after 10 ")


def test_lines_of_a_trial_carry_its_name(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = StartupTimeout("uri", 2, 100.0, "trial a1")
    with pytest.raises(TrainingFailed):
        update_until_it_ends(callback, STATES.InitializingState())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trial a1: no resources for 2 workers for 1 minutes; giving up after ")


@pytest.mark.parametrize("masked", [False, True], ids=["as is", "masked"])
def test_slow_autoscaler_is_one_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    if masked:
        mask_output()
    # On its way to the controller.
    pickle.loads(pickle.dumps(StartupTimeout("uri", 2, 100.0)))  # noqa: S301
    logger = ray_private_api.train_logger("scaling_policy.autoscaling_coordinator_client")
    try:
        raise TimeoutError
    except TimeoutError:
        logger.warning("Failed to send resource request for %s.", "a training", exc_info=True)
    (record,) = caplog.records
    line = logging.Formatter().format(record)
    assert line == "Ray's autoscaler did not respond in time; Ray repeats its request"


def test_each_wait_has_its_own_limit(clock: list[float]) -> None:
    callback, state = StartupTimeout("uri", 2, 100.0), STATES.InitializingState()
    for _ in range(5):
        callback.after_controller_state_update(state, state)
        clock[0] += 90.0
        callback.after_controller_state_update(state, state)
        callback.after_controller_state_update(state, STATES.RunningState())
    callback.after_controller_state_update(state, state)
    clock[0] += 101.0
    with pytest.raises(TrainingFailed):
        callback.after_controller_state_update(state, state)


def test_sigterm_ends_a_wait(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "stop_requested", lambda uri: uri == "one")
    state = STATES.InitializingState()
    StartupTimeout("one", 2, 600.0).after_controller_state_update(state, STATES.RunningState())
    StartupTimeout("two", 2, 600.0).after_controller_state_update(state, state)
    with pytest.raises(TrainingStopped, match="to resume"):
        StartupTimeout("one", 2, 600.0).after_controller_state_update(state, state)


def reschedule(callback: StartupTimeout, error: Exception) -> None:
    """Update the callback as the controller does after workers could not be started."""
    state = STATES.ReschedulingState(training_failed_error=ControllerError(error))
    callback.after_controller_state_update(STATES.InitializingState(), state)
    callback.after_controller_state_update(state, state)


def test_crashing_workers_end_the_training_with_their_error(clock: list[float]) -> None:
    callback = StartupTimeout("uri", 2, 600.0)
    for _ in range(5):
        reschedule(callback, NO_RESOURCES(2))  # missing resources are not a crash
    crash = CRASH("a worker died")
    crash.__cause__ = ImportError("Traceback:\nno module named x")
    reschedule(callback, crash)
    reschedule(callback, crash)
    with pytest.raises(
        TrainingFailed, match="not be started in 3 attempts: no module named x; run"
    ):
        reschedule(callback, crash)
    assert clock[0] < 60


def test_crash_count_restarts_after_workers_have_trained(clock: list[float]) -> None:
    callback = StartupTimeout("uri", 2, 600.0)
    for _ in range(4):
        reschedule(callback, CRASH("a worker died"))
        reschedule(callback, CRASH("a worker died"))
        callback.after_controller_state_update(STATES.InitializingState(), STATES.RunningState())


def test_traceback_of_missing_resources_is_hidden() -> None:
    StartupTimeout("uri", 2, 600.0).after_controller_start(None)
    logger = ray_private_api.train_logger("controller.controller")
    handler = logging.handlers.BufferingHandler(9)  # Ray's loggers do not propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        for error in (NO_RESOURCES(2), RuntimeError("another")):
            try:
                raise error
            except Exception:
                logger.exception("an error")
    finally:
        logger.removeHandler(handler)
    (record,) = handler.buffer
    assert record.exc_info is not None and "another" in str(record.exc_info[1])


def test_wait_is_ten_minutes_or_as_configured() -> None:
    assert longest_wait(Config.from_dict({}).ray) == 600.0
    assert longest_wait(Config.from_dict({"ray": {"wait_for_nodes": 30}}).ray) == 1800.0
