"""Training with Ray Train: the session of a worker, and the launch of all workers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import Field

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed import ray_private_api
from pipeline.distributed.ray_cluster import gpu_choice, longest_wait, on_loopback, ray_cluster
from pipeline.distributed.world import World
from pipeline.errors import (
    LeaseLostError,
    OutageError,
    TrainingFailed,
    TrainingStopped,
    UserError,
)
from pipeline.progress import counted
from pipeline.storage.document import Document
from pipeline.storage.redact import mask_output
from pipeline.tracking import RunSpec, load_run_spec, spool_folder
from pipeline.training.error_hints import (
    LOST_PROCESS,
    LOST_WORKER,
    UnrecoverableFailure,
    last_line,
)
from pipeline.training.outcome import Failed, Finished, Stopped, TrainOutcome
from pipeline.training.ray_backend.preemption import (
    DriverRequests,
    PreemptionWatcher,
    preemption_watch_enabled,
    relay_stop_signal,
    stop_requested,
)
from pipeline.training.ray_backend.preflight import check_nodes, check_this_node
from pipeline.training.ray_backend.resize import hold_for_resize, requested_workers
from pipeline.training.ray_backend.restart_pause import wait_for_pause
from pipeline.training.run_record import RunRecord
from pipeline.training.stop import RESUME_HINT, Request, StopSignal
from pipeline.training.worker import run_rank

START_ATTEMPT_SECONDS = 20.0  # how long Ray Train waits for resources in one attempt


class WorkerSettings(Document):
    """Everything that the driver passes to a worker."""

    config: Config
    storage: str = Field(description="folder or URI of all runs")
    run: str = Field(description="name of the run")
    tracking_uri: str
    run_id: str = Field(description="of MLflow")
    run_spec: RunSpec | None = Field(
        default=None, description="to create the MLflow run, if its store has not responded yet"
    )
    label: str = Field(default="", description="put before every progress line")
    owner: str = Field(default="", description="token of the driver's lease of the run")
    may_end_at_report: bool = Field(
        default=False, description="whether what receives the reports may end the training"
    )


class RaySession:
    """A worker of Ray Train. Ray Train restarts workers; checkpoints are the project's own.

    ``driver`` (``RunRecord.driver``) is the one whose requests are polled.
    """

    def __init__(
        self, store: CheckpointStore, driver: str = "", *, may_end_at_report: bool = False
    ) -> None:
        self.world, self.store = ray_world(), store
        self.may_end_at_report = may_end_at_report
        self._driver = driver or store.storage.uri
        self._preemption = PreemptionWatcher(self.world) if preemption_watch_enabled() else None
        self._driver_requests = DriverRequests(self._requested) if self.world.is_main else None

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray Train and to Ray Tune; a barrier that takes up to 2 s."""
        import ray.train

        ray.train.report(dict(metrics))

    def request_pending(self) -> bool:
        """Return whether rank 0 has a request, from memory; every rank may call it."""
        watched = self._driver_requests is not None and self._driver_requests.pending
        return watched or (self._preemption is not None and self._preemption.pending())

    def _requested(self) -> bool:
        return bool(stop_requested(self._driver)) or requested_workers(self._driver) is not None

    def close(self) -> None:
        """End the thread of rank 0."""
        if self._driver_requests is not None:
            self._driver_requests.close()

    def poll_request(self) -> Request | None:
        """Return a request of the driver to stop, or one to save.

        The latter if the number of workers changes, or if a node leaves.
        """
        driver, stop, workers = self._driver, None, None
        if self.world.is_main:
            stop, workers = stop_requested(driver), requested_workers(driver)
        stop, workers = self.world.broadcast((stop, workers))
        if stop:
            return Request(stop, stop=True)
        if workers is not None:
            reason = f"the cluster has resources for {counted(workers, 'worker')}"
            return Request(reason, stop=False, hold=partial(hold_for_resize, driver, self.world))
        return self._preemption.poll() if self._preemption else None


def ray_world() -> World:
    """Return the rank of this worker of Ray Train, the number of workers, and the device."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    return World(context.get_world_rank(), context.get_world_size(), get_device())


def train_in_ray(
    config: Config,
    record: RunRecord,
    uri: str,
    run_id: str,
    callbacks: Sequence[Any],
    stop: StopSignal,
    label: str = "",
) -> Finished:
    """Run the workers to the end, restarting them as configured; return rank 0's outcome."""
    record.clear_failure()
    settings = worker_settings(config, record, uri, run_id, label)
    settings = settings.model_copy(update={"may_end_at_report": bool(callbacks)})
    with ray_cluster(config.ray) as owned, relay_stop_signal(stop, record.driver):
        from ray.train.v2.api.exceptions import TrainingFailedError

        config = with_chosen_device(config, label)
        check_nodes(record, run_id, config.ray, label)
        with _keyboard_interrupt():
            trainer = build_trainer(config, record, _ray_worker, settings, callbacks, owned, label)
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                raise _failure(error, record) from error
    if failure := record.read_failure():
        raise failure
    outcome: TrainOutcome = result.return_value
    if isinstance(outcome, Failed):
        raise TrainingFailed(outcome.reason)
    if isinstance(outcome, Stopped):
        raise TrainingStopped(outcome.reason)
    return outcome


def with_chosen_device(config: Config, label: str = "") -> Config:
    """Return the configuration with ``ray.gpu`` true or false, for the connected cluster.

    Prints a line, after ``label``, if the cluster has GPUs that are not used. Raises UserError if
    the training needs GPUs and gets none.
    """
    import ray

    choice = gpu_choice(config.ray, ray.cluster_resources())
    if choice.note:
        text = f"{label}: {choice.note}" if label else choice.note
        print(text, file=sys.stderr, flush=True)
    return config.replace({"ray.gpu": choice.used})


def worker_settings(
    config: Config, record: RunRecord, uri: str, run_id: str, label: str = ""
) -> WorkerSettings:
    """Return what the workers need.

    A run without a store has its spec in the spool of this machine. If the storage is an object
    store, the worker that logs to the run has another spool.
    """
    return WorkerSettings(
        config=config,
        storage=record.storage,
        run=record.name,
        tracking_uri=uri,
        run_id=run_id,
        run_spec=load_run_spec(spool_folder(record.uri)),
        label=label,
        owner=record.owner,
    )


@contextlib.contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Keep Ctrl-C a KeyboardInterrupt: Ray Train's handler would exit with code 0."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def build_trainer(
    config: Config,
    record: RunRecord,
    worker: Callable[[Mapping[str, Any]], Any],
    settings: Document,
    callbacks: Sequence[Any] = (),
    owned: bool = False,
    label: str = "",
) -> Any:
    """Return Ray Train's trainer, which calls ``worker`` on every rank.

    ``ray.gpu`` is true or false; see `with_chosen_device`.
    ``worker`` gets the content of ``settings``. ``owned``: this process has started the cluster.
    ``label`` is put before the lines about waiting for workers.
    """
    import ray.train as rt
    from ray.train.torch import TorchConfig

    from pipeline.training.ray_backend.elastic_policy import ElasticPolicy
    from pipeline.training.ray_backend.restart_policy import RestartPolicy
    from pipeline.training.ray_backend.startup_timeout import StartupTimeout

    # One attempt. `StartupTimeout` limits the duration of all attempts.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_ATTEMPT_SECONDS:g}")
    timeout = StartupTimeout(record.driver, config.ray.min_workers, longest_wait(config.ray), label)
    torch_config: Any = ray_private_api.torch_config_on_loopback if on_loopback() else TorchConfig
    gpu = config.ray.gpu is True
    train: Any = rt  # the annotations of ray.train still describe its first version
    failures = train.FailureConfig(
        max_failures=config.ray.max_failures, controller_failure_limit=-1
    )
    scaling = train.ScalingConfig(
        num_workers=config.ray.workers,
        elastic_resize_monitor_interval_s=config.ray.resize_seconds,
        use_gpu=gpu,
        resources_per_worker={
            "CPU": config.ray.cpus_per_worker,
            **({"GPU": 1} if gpu else {}),
        },
    )
    policies = {
        "failure_policy": RestartPolicy(failures, record.driver, config.ray.max_outages, label)
    }
    if not isinstance(config.ray.workers, int):
        policies["scaling_policy"] = ElasticPolicy(scaling, record.driver)
    return trainer_class(owned, **policies)(
        worker,
        train_loop_config=settings.model_dump(mode="json"),
        torch_config=torch_config(
            backend="nccl" if gpu else "gloo", timeout_s=config.ray.collective_timeout
        ),
        scaling_config=scaling,
        run_config=train.RunConfig(
            name=record.name,
            storage_path=record.storage,
            failure_config=failures,
            callbacks=[*callbacks, timeout],
            logging_config=train.LoggingConfig(log_level="WARNING"),
        ),
    )


def trainer_class(owned: bool, **policies: Any) -> Any:
    """Return Ray Train's trainer for torch without helper processes that have no use here.

    One manages the data sets of Ray Data, which are not used, in a process per start of the
    workers. One frees the workers' resources after a driver that died; it polls the dashboard every
    second for a tenth of a core, and a cluster that this process has started ends with it.
    ``policies`` replace those of its controller.
    """
    unused = {ray_private_api.DATASETS_CALLBACK}
    if owned:
        unused.add(ray_private_api.PLACEMENT_GROUP_CLEANER_CALLBACK)
    return ray_private_api.torch_trainer(unused, **policies)


def _ray_worker(content: Mapping[str, Any]) -> TrainOutcome:
    # Ray Train announces every report, from every rank, through a logger without a level.
    logging.getLogger().setLevel(logging.WARNING)
    ray_private_api.hide_exit_in_callbacks()
    mask_output()
    settings = WorkerSettings.from_content(content, "worker settings")
    try:
        return _run_worker(settings)
    except TrainingStopped as stopped:
        return Stopped(reason=str(stopped))
    except LeaseLostError as lost:
        return Failed(reason=str(lost))  # on every rank
    except UnrecoverableFailure as error:
        _record_failure(settings, error)
        return Failed(reason=str(error))  # on every rank
    except (UserError, OutageError) as error:
        if isinstance(error, UserError):
            _record_failure(settings, error)
        ray_private_api.hide_training_error()  # the message says what users can act on
        raise


def _run_worker(settings: WorkerSettings) -> TrainOutcome:
    import ray.train

    record = RunRecord(settings.storage, settings.run, settings.owner)
    world = ray_world()
    wait_for_pause(record.driver, world)
    # Decided once: a rank that returned alone would let the others wait for it.
    ended = world.on_main(lambda: record.lost() or record.read_failure())
    if ended:
        return Failed(reason=str(ended))  # taken over, or a restart would fail in the same place
    if ray.train.get_context().get_local_rank() == 0:  # the ranks of a node see the same storage
        check_this_node(record.uri, record.storage, settings.run_id)
    session = RaySession(
        CheckpointStore(record.uri, record.check_lease),
        record.driver,
        may_end_at_report=settings.may_end_at_report,
    )
    try:
        return run_rank(
            settings.config,
            session,
            settings.tracking_uri,
            settings.run_id,
            spool_folder(record.uri),
            settings.label,
            settings.run_spec,
        )
    finally:
        session.close()


def _record_failure(settings: WorkerSettings, error: Exception) -> None:
    """Let restarted workers end at once; other ranks may fail before Ray Train sees this one."""
    with contextlib.suppress(OSError, OutageError, LeaseLostError):  # the disk may be full
        RunRecord(settings.storage, settings.run, settings.owner).write_failure(error)


def _failure(error: Exception, record: RunRecord) -> Exception:
    """Return the error that ended a training, from what workers recorded or Ray Train reports."""
    from ray.exceptions import RayActorError

    if recorded := record.read_failure():
        return recorded
    ended = getattr(error, "controller_failure", None)
    if isinstance(ended, TrainingFailed | TrainingStopped):
        return ended
    if isinstance(ended, Exception):
        return TrainingFailed(f"Ray Train failed: {last_line(ended)}")
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if failures:
        for one in failures.values():
            if isinstance(one, UserError):
                return one
        for one in failures.values():
            if isinstance(one, OutageError):
                return OutageError(f"an outage ended the training: {one}; {RESUME_HINT}")
        # A rank that only lost another one does not know the cause.
        rank, failure = min(failures.items(), key=lambda f: (LOST_WORKER in str(f[1]), f[0]))
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, RayActorError):
            return TrainingFailed(f"rank {rank} failed: its process {LOST_PROCESS}")
        return TrainingFailed(f"rank {rank} failed: {str(failure).strip().splitlines()[-1]}")
    return TrainingFailed(str(error).strip())
