"""Private names of Ray are as pipeline/distributed/ray_private_api.py expects them."""

import ast
import inspect
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal import constants

from pipeline.distributed import ray_private_api as private
from tests.conftest import ROOT

THIS = Path(__file__).relative_to(ROOT)
ALLOWED = {"pipeline/distributed/ray_private_api.py", str(THIS)}
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._\w+|\binternal_kv\b|\b_create_default_callbacks\b|\._state_type\b"
    r"|\bray\.core\.generated\b|\b_initialize_and_run_controller\b"
)


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_private_names_stand_in_one_file() -> None:
    folders = ("model", "pipeline", "jobs", "tests", "benchmarks", "infra", "docs")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ALLOWED
        for match in PRIVATE.finditer(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import ray_constants",
        "from ray.train.v2._internal.exceptions import X",
        "import ray.autoscaler._private.util",
        "from ray.experimental import internal_kv",
        "state._state_type.name",
        "from ray.core.generated import common_pb2",
    ],
)
def test_private_names_are_recognised(source: str) -> None:
    ast.parse(source)
    assert PRIVATE.search(source)


def test_installed_version_is_not_older_than_the_one_seen() -> None:
    installed = [int(part) for part in ray.__version__.split(".")[:2]]
    assert installed >= [int(part) for part in private.SEEN_IN.split(".")]
    assert f"ray[default,train,tune]>={private.SEEN_IN}," in (ROOT / "pyproject.toml").read_text()


def test_loopback_switch_is_set_and_restored() -> None:
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    assert before is True
    with private.listen_on_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert os.environ[name] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER is before
    assert name not in os.environ


def test_loopback_switch_is_read_when_ray_resolves_its_address() -> None:
    from ray._private import services

    assert "ENABLE_RAY_CLUSTER" in inspect.getsource(services)


def test_process_group_on_loopback_replaces_what_ray_train_does() -> None:
    from ray.train.torch import TorchConfig

    config = private.torch_config_on_loopback("gloo", 77)
    assert isinstance(config, TorchConfig)
    assert (config.backend, config.timeout_s) == ("gloo", 77)
    theirs = TorchConfig().backend_cls
    assert issubclass(config.backend_cls, theirs) and config.backend_cls is not theirs
    assert parameters(theirs.on_start) == parameters(config.backend_cls.on_start)
    source = inspect.getsource(theirs.on_start)
    for name in ("execute_single(", "execute_single_async(", "_set_torch_distributed_env_vars"):
        assert name in source
    assert "len(worker_group)" in source


def test_key_value_store_functions_take_these_parameters() -> None:
    from ray.experimental import internal_kv

    assert {"key", "value", "overwrite", "namespace"} <= parameters(internal_kv._internal_kv_put)
    assert {"key", "namespace"} <= parameters(internal_kv._internal_kv_get)
    assert {"key", "namespace"} <= parameters(internal_kv._internal_kv_del)


def test_a_worker_holds_the_preemption_notices_that_it_has_received() -> None:
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    assert "preemption_context" in context.TrainContext.__dataclass_fields__
    assert "preemption_info" in PreemptionContext.__dataclass_fields__
    source = inspect.getsource(private.received_preemption_info)
    assert "get_train_context().preemption_context.preemption_info" in source
    assert not parameters(context.get_train_context)


def test_controller_callback_has_the_hooks_in_use() -> None:
    callback = private.controller_callback()
    assert {"train_run_context"} <= parameters(callback.after_controller_start)
    hook = callback.after_controller_state_update
    assert {"previous_state", "current_state"} <= parameters(hook)
    # Only such callbacks may be given to RunConfig beside UserCallback's.
    from ray.train.v2._internal.execution.callback import RayTrainCallback

    assert issubclass(callback, RayTrainCallback)


def test_startup_timeout_error_is_raised_for_a_number_of_workers() -> None:
    error = private.startup_timeout_error()
    assert issubclass(error, Exception)
    assert parameters(error.__init__) == {"self", "num_workers"}
    assert issubclass(private.startup_failed_error(), Exception)


def test_controller_states_have_the_names_in_use() -> None:
    from pipeline.training.ray_backend.startup_timeout import STARTING_STATES

    controller_state = private.controller_states()
    assert private.controller_state_name(controller_state.InitializingState()) == "INITIALIZING"
    assert private.controller_state_name(controller_state.RunningState()) == "RUNNING"
    assert set(STARTING_STATES) <= set(controller_state.TrainControllerStateType.__members__)
    assert "training_failed_error" in parameters(controller_state.ReschedulingState.__init__)


@pytest.mark.parametrize(
    "module",
    [
        "callback_manager",
        "controller.controller",
        "scaling_policy.autoscaling_coordinator_client",
    ],
)
def test_ray_train_logs_under_the_names_of_its_modules(module: str) -> None:
    import importlib

    found = importlib.import_module(f"ray.train.v2._internal.execution.{module}")
    assert isinstance(found.logger, logging.Logger)
    assert private.train_logger(module) is found.logger


def test_trainer_leaves_out_default_callbacks_by_name() -> None:
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    assert DatasetsCallback.__name__ == private.DATASETS_CALLBACK
    cleaner = private.PLACEMENT_GROUP_CLEANER_CALLBACK
    assert PlacementGroupCleanerCallback.__name__ == cleaner

    def names(trainer: type) -> list[str]:
        made = trainer(lambda: None)._create_default_callbacks()
        return [type(one).__name__ for one in made]

    all_names = names(TorchTrainer)
    assert {private.DATASETS_CALLBACK, cleaner} <= set(all_names)
    reduced = names(private.torch_trainer({private.DATASETS_CALLBACK}))
    assert reduced == [name for name in all_names if name != private.DATASETS_CALLBACK]


def test_trainer_passes_policies_to_the_controller() -> None:
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert {"failure_policy", "scaling_policy"} <= parameters(TrainController.__init__)
    hook = inspect.signature(DataParallelTrainer._initialize_and_run_controller)
    (arguments,) = [p for p in hook.parameters.values() if p.kind == p.VAR_KEYWORD]
    source = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    assert f"controller_actor_cls.remote(**{arguments.name})" in source


def test_failure_policy_decides_about_the_errors_of_workers() -> None:
    from ray.train import FailureConfig
    from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

    base = private.failure_policy()
    assert parameters(base.__init__) == {"self", "failure_config"}
    assert parameters(base.make_decision) == {"self", "training_failed_error"}
    assert {"RETRY", "RAISE"} <= set(private.failure_decision().__members__)
    assert "max_failures" in vars(base(FailureConfig()).failure_config)
    assert "worker_failures" in vars(WorkerGroupError("", {}))
    assert not private.is_preemption(WorkerGroupError("", {0: RuntimeError()}))
    preempted = type("Info", (), {"preempted_ranks": [0]})()
    assert private.is_preemption(PreemptionError(preempted))
    assert all(issubclass(error, Exception) for error in private.lost_worker_errors())


def test_scaling_policy_decides_about_running_and_other_workers() -> None:
    base = private.elastic_scaling_policy()
    assert parameters(base.__init__) == {"self", "scaling_config"}
    running = parameters(base.make_decision_for_running_worker_group)
    assert running == {"self", "worker_group_state", "worker_group_status"}
    assert parameters(base.make_decision_for_non_running_worker_group) == {"self"}
    resize, _ = private.scaling_decisions()
    assert {"num_workers"} <= parameters(resize)


def test_unused_nodes_have_their_own_reason() -> None:
    from ray.core.generated import common_pb2

    assert common_pb2.NodeDeathInfo.Reason.Name(private.idle_drain_reason()).endswith("DRAIN_IDLE")


def test_traceback_of_a_training_function_is_logged_by_the_hidden_logger() -> None:
    from ray.train.v2._internal import util

    assert util.logger.name == "ray.train.v2._internal.util"
    logged = inspect.getsource(util.construct_user_exception_with_traceback)
    assert 'logger.error(f"Error in training function' in logged


def test_exit_in_a_callback_is_not_reported(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import sys, weakref
from pipeline.distributed.ray_private_api import hide_exit_in_callbacks

class Thing: ...

def fail_with(error):
    def fail(_): raise error
    return fail

hide_exit_in_callbacks()
for error in (SystemExit(1), ValueError("shown")):
    thing = Thing()
    kept = weakref.ref(thing, fail_with(error))
    del thing
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    shown = capfd.readouterr().err
    assert "ValueError: shown" in shown and "SystemExit" not in shown


def test_environment_variables_of_ray_train_are_known_to_it() -> None:
    """Variables that the project sets; a renamed one would be ignored in silence."""
    known = {value for value in vars(constants).values() if isinstance(value, str)}
    used = {
        name
        for folder in ("pipeline", "tests/pipeline/training")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in re.findall(r"\bRAY_TRAIN_[A-Z_]+\b", path.read_text("utf-8"))
    }
    assert len(used) >= 4
    assert used <= known, used - known


def test_uploads_are_unpacked_in_the_folder_that_provenance_expects() -> None:
    from ray._private.runtime_env import working_dir

    from pipeline.tracking.provenance import RAY_UPLOAD_FOLDER

    assert f'"{RAY_UPLOAD_FOLDER}"' in inspect.getsource(working_dir)


def test_functions_used_by_tests_take_these_parameters() -> None:
    from ray._private.runtime_env.packaging import create_package
    from ray._private.state import actors
    from ray.autoscaler._private.util import prepare_config, validate_config

    assert "actor_state_name" in parameters(actors)
    assert {"include_gitignore", "excludes"} <= parameters(create_package)
    assert len(parameters(prepare_config)) == len(parameters(validate_config)) == 1
