"""Everything that training knows of Ray Train: a worker's session, the launch of the workers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed.ray_cluster import longest_wait, ray_cluster
from pipeline.distributed.world import World
from pipeline.errors import TrainingFailed, TrainingStopped, UserError
from pipeline.tracking import spool_folder
from pipeline.training.error_hints import LOST_WORKER, FailedForGood, told
from pipeline.training.ray_backend.preemption import (
    LeavingNodes,
    relayed,
    stop_wanted,
    watches_nodes,
)
from pipeline.training.ray_backend.preflight import check_here, check_nodes
from pipeline.training.run_record import RunRecord
from pipeline.training.stop import Request, StopSignal
from pipeline.training.worker import run_rank

START_SECONDS = 20.0  # that Ray Train waits for room before it looks at the cluster again


class RaySession:
    """A worker of Ray Train. Checkpoints are ours: Ray Train restarts, we know where to go on."""

    def __init__(self, store: CheckpointStore) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.world = World(context.get_world_rank(), context.get_world_size(), get_device())
        self.store = store
        self._leaving = LeavingNodes(self.world) if watches_nodes() else None

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell Ray Train, and with it Ray Tune; a barrier, at most one in about 2 s."""
        import ray.train

        ray.train.report(dict(metrics))

    def asked(self) -> Request | None:
        """To stop, after the driver has received SIGTERM; to save, while a node is drained."""
        wanted = self.world.share(
            stop_wanted(self.store.storage.uri) if self.world.is_main else False
        )
        if wanted:
            return Request("stopped by SIGTERM", stop=True)
        return self._leaving.look() if self._leaving else None


def train_in_ray(
    config: Config,
    record: RunRecord,
    uri: str,
    run_id: str,
    callbacks: Sequence[Any],
    stop: StopSignal,
) -> dict[str, Any]:
    """Run the workers to the end, restarting them as configured; rank 0's outcome."""
    record.forget_failure()
    with ray_cluster(config.ray) as owned, relayed(stop, record.uri):
        from ray.train.v2.api.exceptions import TrainingFailedError

        check_nodes(record, run_id)
        with _interrupts():
            try:
                result = _trainer(config, record, uri, run_id, callbacks, owned).fit()
            except TrainingFailedError as error:
                raise _reason(error, record) from error
    if noted := record.noted_failure():
        raise noted
    outcome: dict[str, Any] = result.return_value
    if reason := outcome.get("failed"):
        raise TrainingFailed(reason)
    if reason := outcome.get("stopped"):
        raise TrainingStopped(reason)
    return outcome


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C stays KeyboardInterrupt: Ray Train's own handler exits as if all was well."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _trainer(
    config: Config,
    record: RunRecord,
    uri: str,
    run_id: str,
    callbacks: Sequence[Any],
    owned: bool,
) -> Any:
    settings = {
        "config": config.model_dump(mode="json"),
        "storage": record.storage,
        "run": record.name,
        "uri": uri,
        "run_id": run_id,
    }
    return build_trainer(config, record, _ray_worker, settings, callbacks, owned)


def build_trainer(
    config: Config,
    record: RunRecord,
    worker: Callable[[Mapping[str, Any]], Any],
    settings: Mapping[str, Any],
    callbacks: Sequence[Any] = (),
    owned: bool = False,
) -> Any:
    """Ray Train's trainer that calls ``worker(settings)`` on every rank, as configured."""
    import ray.train as rt
    from ray.train.torch import TorchConfig

    from pipeline.training.ray_backend.startup_timeout import Waiting

    # One try. How long all of them together may take is for `Waiting` to say.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_SECONDS:g}")
    waiting = Waiting(record.uri, config.ray.min_workers, longest_wait(config.ray))
    train: Any = rt  # the annotations of ray.train still describe its first version
    return trainer_class(owned)(
        worker,
        train_loop_config=dict(settings),
        torch_config=TorchConfig(
            backend="nccl" if config.ray.gpu else "gloo", timeout_s=config.ray.collective_timeout
        ),
        scaling_config=train.ScalingConfig(
            num_workers=config.ray.workers,
            elastic_resize_monitor_interval_s=config.ray.resize_seconds,
            use_gpu=config.ray.gpu,
            resources_per_worker={
                "CPU": config.ray.cpus_per_worker,
                **({"GPU": 1} if config.ray.gpu else {}),
            },
        ),
        run_config=train.RunConfig(
            name=record.name,
            storage_path=record.storage,
            failure_config=train.FailureConfig(
                max_failures=config.ray.max_failures, controller_failure_limit=-1
            ),
            callbacks=[*callbacks, waiting],
            logging_config=train.LoggingConfig(log_level="WARNING"),
        ),
    )


def trainer_class(owned: bool) -> Any:
    """Ray Train's trainer for torch, without helpers that have nothing to help here.

    One manages the datasets of Ray Data, of which there are none, in a process of its own for each
    start of the workers. One frees the workers' room after a driver that died: it asks who lives
    every second, through the dashboard, at the price of a tenth of a core. A cluster that this
    process has started ends with it.
    """
    from ray.train.torch import TorchTrainer

    needless = {"DatasetsCallback"}
    if owned:
        needless.add("PlacementGroupCleanerCallback")
    whole: Any = TorchTrainer

    class Lean(whole):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ not in needless]

    return Lean


def _ray_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    # Ray Train announces every report, from every rank, through a logger without a level.
    logging.getLogger().setLevel(logging.WARNING)
    config = Config.from_dict(settings["config"])
    record = RunRecord(settings["storage"], settings["run"])
    if record.noted_failure():
        return {}  # restarted, only to fail at the same place
    check_here(record.uri, record.storage, settings["run_id"])
    session = RaySession(CheckpointStore(record.uri))
    try:
        spool = spool_folder(record.uri)
        return run_rank(config, session, settings["uri"], settings["run_id"], spool)
    except TrainingStopped as stopped:
        return {"stopped": str(stopped)}  # an exception would be a failure, and make Ray restart
    except (UserError, FailedForGood) as error:
        with contextlib.suppress(OSError):
            record.note_failure(error)
        if isinstance(error, FailedForGood):
            return {"failed": str(error)}  # on every rank, and perhaps on a disk without room
        raise


def _reason(error: Exception, record: RunRecord) -> Exception:
    if noted := record.noted_failure():
        return noted
    ended = getattr(error, "controller_failure", None)
    if isinstance(ended, TrainingFailed | TrainingStopped):
        return ended
    if isinstance(ended, Exception):
        return TrainingFailed(f"Ray Train failed: {told(ended)}")
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if failures:
        for one in failures.values():
            if isinstance(one, UserError):
                return one
        # One that only lost another worker does not know why.
        rank, failure = min(failures.items(), key=lambda f: (LOST_WORKER in str(f[1]), f[0]))
        return TrainingFailed(f"rank {rank} failed: {str(failure).strip().splitlines()[-1]}")
    return TrainingFailed(str(error).strip())
