"""Every private name of Ray that the project uses, each behind a function of this file.

Ray gives no promise for these names: each was seen in Ray 2.60, the oldest version that
``pyproject.toml`` allows, and tests/pipeline/distributed/test_ray_private_api.py fails when a later
one changes it. The file is in this package because both `ray_cluster` and training need it. Imports
are inside the functions, since importing Ray Train takes seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

SEEN_IN = "2.60"  # the version in which all names of this file were checked


@contextlib.contextmanager
def listen_on_loopback() -> Iterator[None]:
    """Make all servers of a Ray that is started inside the block listen on 127.0.0.1.

    Ray does so on systems where it does not support clusters; its private switch for them makes it
    do the same on Linux. ``ray._private.ray_constants``, seen in Ray 2.60.
    """
    from ray._private import ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for Ray's own processes
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def kv_put(key: bytes, value: bytes, namespace: bytes) -> None:
    """Write to the cluster's key-value store. ``ray.experimental.internal_kv``, seen in 2.60."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=namespace)


def kv_get(key: bytes, namespace: bytes) -> bytes | None:
    """Read from the cluster's key-value store; None for an absent key. Seen in Ray 2.60."""
    from ray.experimental import internal_kv

    value: bytes | None = internal_kv._internal_kv_get(key, namespace=namespace)
    return value


def kv_delete(key: bytes, namespace: bytes) -> None:
    """Delete a key of the cluster's key-value store, if it is there. Seen in Ray 2.60."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=namespace)


def controller_callback() -> Any:
    """Return the base class of callbacks that Ray Train's controller runs in its own process.

    The public ``UserCallback`` is not called between two attempts to start workers.
    ``ray.train.v2._internal.execution.callback``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    return ControllerCallback


def received_preemption_info() -> Any | None:
    """Return the notice of leaving nodes that this Ray Train worker has received, or None.

    Ray Train sends notices to every worker. Unlike the public ``ray.train.get_preemption_info``,
    this is not a barrier. ``ray.train.v2._internal.execution.context``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info


def startup_timeout_error() -> type[Exception]:
    """Return the error of workers that did not get their resources in time.

    ``ray.train.v2._internal.exceptions``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    error: type[Exception] = WorkerGroupStartupTimeoutError
    return error


def controller_state_name(state: Any) -> str:
    """Return the name of a state of Ray Train's controller, such as ``RUNNING``. Seen in 2.60."""
    name: str = state._state_type.name
    return name


def train_logger(module: str) -> logging.Logger:
    """Return the logger of a module of Ray Train's execution, such as ``callback_manager``.

    Modules of ``ray.train.v2._internal.execution`` log under their own names; seen in Ray 2.60.
    """
    return logging.getLogger(f"ray.train.v2._internal.execution.{module}")


def torch_trainer(callbacks_left_out: Collection[str], **policies: Any) -> Any:
    """Return Ray Train's trainer for torch, without default callbacks of these class names.

    ``policies`` replace those that its controller gets, such as ``failure_policy``. The hooks are
    ``DataParallelTrainer._create_default_callbacks`` and ``_initialize_and_run_controller``, seen
    in Ray 2.60.
    """
    from ray.train.torch import TorchTrainer

    base: Any = TorchTrainer

    class ConfiguredTorchTrainer(base):
        def _create_default_callbacks(self) -> list[Any]:
            created = super()._create_default_callbacks()
            return [one for one in created if type(one).__name__ not in callbacks_left_out]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            return super()._initialize_and_run_controller(**{**arguments, **policies})

    return ConfiguredTorchTrainer


def failure_policy() -> Any:
    """Return the class that decides about failures in Ray Train's controller.

    ``ray.train.v2._internal.execution.failure_handling``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

    return DefaultFailurePolicy


def failure_decision() -> Any:
    """Return the enumeration of a failure policy's decisions, RETRY and RAISE. Seen in 2.60."""
    from ray.train.v2._internal.execution.failure_handling import FailureDecision

    return FailureDecision


def elastic_scaling_policy() -> Any:
    """Return the class that decides how many workers Ray Train runs within a range.

    ``ray.train.v2._internal.execution.scaling_policy``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

    return ElasticScalingPolicy


def scaling_decisions() -> tuple[Any, Any]:
    """Return the classes of decisions to change the workers, and to leave them. Seen in 2.60."""
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

    return ResizeDecision, NoopDecision


def is_preemption(error: Exception) -> bool:
    """Return whether workers failed because a node was preempted. Seen in Ray 2.60."""
    from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure

    return bool(_is_preemption_failure(error))  # type: ignore[arg-type]


def lost_worker_errors() -> tuple[type[Exception], ...]:
    """Return the errors that Ray Train reports for a worker that ended or does not respond.

    ``ray.train.v2._internal.exceptions``, seen in Ray 2.60.
    """
    from ray.exceptions import RayActorError
    from ray.train.v2._internal import exceptions

    return (
        RayActorError,
        exceptions.WorkerHealthCheckFailedError,
        exceptions.WorkerHealthCheckTimeoutError,
    )


def idle_drain_reason() -> int:
    """Return the ``DeathReason`` of an unused node that an autoscaler removed. Seen in Ray 2.60."""
    from ray.core.generated import common_pb2

    messages: Any = common_pb2
    reason: int = messages.NodeDeathInfo.AUTOSCALER_DRAIN_IDLE
    return reason


def hide_training_error() -> None:
    """Hide the traceback that Ray Train logs in a worker whose function raises. Seen in 2.60."""
    logging.getLogger("ray.train.v2._internal.util").setLevel(logging.CRITICAL)


def hide_exit_in_callbacks() -> None:
    """Hide the traceback of Ray's SystemExit where Python cannot raise it.

    Ray's handler of SIGTERM, which ends its processes, raises it wherever the main thread is. In
    the callback of a weak reference Python prints and ignores it. Seen in 2.60.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any, /) -> None:
        if not issubclass(unraisable.exc_type, SystemExit):
            report(unraisable)

    sys.unraisablehook = hook


# Default callbacks of Ray Train, by class name; ray.train.v2._internal.callbacks, seen in 2.60.
DATASETS_CALLBACK = "DatasetsCallback"  # starts a process that manages Ray Data's data sets
# Starts an actor that frees the workers' resources after a driver that died.
PLACEMENT_GROUP_CLEANER_CALLBACK = "PlacementGroupCleanerCallback"


def torch_config_on_loopback(backend: str, timeout_s: int) -> Any:
    """Return Ray Train's configuration of torch for ranks that are all on this machine.

    Ray Train's own start of the process group listens on all addresses.
    ``ray.train.torch.config._TorchBackend``, seen in Ray 2.60.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch import config as torch_config

    from pipeline.distributed import loopback_group

    class LoopbackBackend(torch_config._TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            import ray

            port = worker_group.execute_single(0, loopback_group.listen_as_rank_0)
            worker_group.execute(torch_config._set_torch_distributed_env_vars)
            size = len(worker_group)
            join, options = loopback_group.join_group, (size, port, backend_config.timeout_s)
            ray.get(
                [
                    worker_group.execute_single_async(
                        rank, join, backend_config.backend, rank, *options
                    )
                    for rank in range(size)
                ]
            )

    class LoopbackTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return LoopbackBackend

    return LoopbackTorchConfig(backend=backend, timeout_s=timeout_s)


# The rest is used by tests, where the public call needs a dashboard or does not exist.


def controller_states() -> Any:
    """Return the module with the state classes of Ray Train's controller.

    ``ray.train.v2._internal.execution.controller.state``, seen in Ray 2.60.
    """
    from ray.train.v2._internal.execution.controller import state

    return state


def startup_failed_error() -> type[Exception]:
    """Return the error of workers that ended while they started. Seen in Ray 2.60."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    error: type[Exception] = WorkerGroupStartupFailedError
    return error


def cluster_actors(state: str | None = None) -> list[Mapping[str, Any]]:
    """Return the actors of the connected cluster. ``ray._private.state``, seen in Ray 2.60."""
    from ray._private.state import actors

    return list(actors(actor_state_name=state).values())


def package_working_directory(folder: Path, target: Path) -> None:
    """Write the archive that ``ray job submit --working-dir`` uploads.

    ``ray._private.runtime_env.packaging``, seen in Ray 2.60.
    """
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), target, include_gitignore=True, excludes=[])


def validate_launcher(content: dict[str, Any]) -> dict[str, Any]:
    """Return a file of the cluster launcher with defaults filled in, checked as ``ray up`` does.

    ``ray.autoscaler._private.util``, seen in Ray 2.60.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(content)
    validate_config(prepared)
    return prepared
