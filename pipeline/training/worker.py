"""The function that every rank runs, read top to bottom as set up, fit, validate, finish."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.checkpoints.manager import CheckpointManager
from pipeline.checkpoints.meta import (
    UNSCORED,
    BadSamplesState,
    CheckpointMeta,
    DataFingerprints,
)
from pipeline.config import Config, DetectorSpec
from pipeline.data import Manifest, build_eval_loader, build_train_loader
from pipeline.data.loading.bad_samples import BadSamples
from pipeline.data.loading.prefetch_plan import open_shards
from pipeline.distributed.world import World, mean_over_ranks
from pipeline.evaluation.evaluate import evaluate
from pipeline.malloc import keep_freed_memory
from pipeline.metrics.calibration import fit_temperature
from pipeline.metrics.summary import EvaluationSummary, summarize
from pipeline.storage.folder import join
from pipeline.storage.redact import mask_tree
from pipeline.tracking import ClusterLoad, RunSpec, Tracker, save_run_spec, visible_here
from pipeline.training.data_content import (
    check_data_unchanged,
    check_same_content,
    content_hashes,
)
from pipeline.training.error_hints import translate_errors
from pipeline.training.outcome import Finished
from pipeline.training.run_log import RunLog
from pipeline.training.session import Session
from pipeline.training.step_schedule import StepSchedule
from pipeline.training.stop import RequestPoller
from pipeline.training.trainer.assignment_health import HEALTH_INTERVAL, assignment_health
from pipeline.training.trainer.nonfinite_dump import skip_or_dump_nonfinite
from pipeline.training.trainer.profiler import profiled
from pipeline.training.trainer.trainer import Trainer

TRACKER_CLOSE_SECONDS = 30.0  # what the store has not accepted after this time stays in the spool


def train_worker(
    config: Config, session: Session, log: RunLog, tracking_uri: str | None = None
) -> Finished:
    """Train from the latest checkpoint, or from scratch, to the end; every rank calls it.

    A step is saved before it is evaluated, since the process may be killed during an evaluation;
    the next start then evaluates it. Returns the metrics and the name of the selected checkpoint.
    """
    torch.set_num_threads(compute_threads(config))
    keep_freed_memory()
    assert config.data.train is not None, "fit() has checked it"
    shards, world = open_shards(config.data.train, config), session.world
    manifest = shards.manifest
    schedule = StepSchedule(config, manifest.samples)
    trainer = Trainer(config, world, len(manifest.classes), schedule.total_steps, manifest.classes)
    with contextlib.closing(CheckpointManager(config, session.store, trainer)) as checkpoints:
        content = content_hashes(config, manifest, world)
        data = DataFingerprints(train=content["train"], val=content.get("val"))
        restored = checkpoints.restore(partial(check_data_unchanged, config, manifest, data))
        if restored is not None:
            trainer.keep_precision(restored.device, restored.precision)
        elif config.model.init:
            log.started_from(trainer.start_from(manifest.classes, tracking_uri))
        loader = build_train_loader(
            shards, config, world.rank, world.size, start_step=trainer.step_count
        )
        title = f"{config.model.backbone}-{config.model.neck} with {config.assign.name}"
        precision = trainer.precision
        log.start(trainer.step_count, schedule, title, world.size, world.device_name, precision)
        if restored is None:
            log.check_anchors(shards, config)
        log.describe_sampling(loader.order, config.data.repeat_threshold)
        now = world.device.type, precision
        before = (restored.device, restored.precision) if restored and restored.device else now
        if before != now:
            log.moved(*(f"{device} in {name}" for device, name in (before, now)))
        if restored:
            log.log_again(restored.records)
        if restored and restored.early_stopping:
            trainer.early_stopping.load(restored.early_stopping)
        if restored and restored.bad_samples:
            loader.bad.restore(**restored.bad_samples.model_dump())
        if restored and restored.metrics is None and restored.step in schedule.evaluation_steps:
            evaluate_step(config, trainer, checkpoints, log, session, schedule, data)
        poller = RequestPoller(session, world, trainer.step_count)
        profile_steps = config.train.profile_steps if world.is_main else 0
        for batch in profiled(loader, profile_steps, log.profile):
            if trainer.early_stopping.should_stop:
                metric = config.evaluate.deciding_metric
                log.stopped_early(trainer.step_count, metric, trainer.early_stopping)
                break
            parts = None
            with skip_or_dump_nonfinite(session.store.storage, trainer):
                parts = trainer.step(batch)
            step = trainer.step_count
            is_last = step == schedule.total_steps
            if parts is None:
                log.skipped_non_finite(step, trainer.skipped_steps)
            elif step % config.train.log_every == 0 or is_last:
                unchecked = torch.tensor(float(loader.bad.unchecked), device=world.device)
                means = mean_over_ranks({**parts, "unchecked": unchecked}, world)
                any_bad = means.pop("unchecked") > 0
                log.step(step, means, trainer.learning_rate)
                if any_bad:
                    loader.bad.check(world)
            if parts and (step % (HEALTH_INTERVAL * config.train.log_every) == 0 or is_last):
                log.metrics(step, assignment_health(trainer, batch))
            request = poller.poll(step)
            if step in schedule.checkpoint_steps or checkpoints.due(step) or request:
                with skip_or_dump_nonfinite(session.store.storage, trainer):
                    trainer.check_gradients()
                loader.bad.check(world)
                meta = checkpoint_meta(config, manifest, data, trainer, schedule, loader.bad)
                meta = meta.model_copy(update={"records": log.records_in_memory()})
                checkpoints.save(meta)
            if step in schedule.evaluation_steps and not (request and request.stop):
                evaluate_step(config, trainer, checkpoints, log, session, schedule, data)
                request = request or session.poll_request()  # an evaluation may take minutes
            if request:
                log.checkpoint_requested(step, request)
                missing = checkpoints.missing() if request.needs_checkpoint else None
                if not missing:
                    log.checkpoint_saved(step, request)
                request.raise_if_stop(step, missing)
                if request.hold:
                    request.hold(missing)
        return finish(config, trainer, checkpoints, log, schedule, content.get("test"))


def checkpoint_meta(
    config: Config,
    manifest: Manifest,
    data: DataFingerprints,
    trainer: Trainer,
    schedule: StepSchedule,
    bad: BadSamples,
) -> CheckpointMeta:
    """Return the meta of a checkpoint of the current step, before its evaluation."""
    return CheckpointMeta(
        step=trainer.step_count,
        epoch=schedule.epoch(trainer.step_count),
        world_size=trainer.world.size,
        device=trainer.world.device.type,
        precision=trainer.precision,
        classes=manifest.classes,
        spec=DetectorSpec(**trainer.detector.spec),
        config=mask_tree(config.recorded()),
        data=data,
        early_stopping=trainer.early_stopping.state(),
        bad_samples=BadSamplesState(
            samples_read=bad.samples_read, occurrences=bad.occurrences, problems=bad.problems
        ),
    )


def evaluate_step(
    config: Config,
    trainer: Trainer,
    checkpoints: CheckpointManager,
    log: RunLog,
    session: Session,
    schedule: StepSchedule,
    data: DataFingerprints,
) -> None:
    """Score the current step on ``data.val`` and add the result to its checkpoint."""
    assert config.data.val and data.val, "or there are no evaluation steps"
    metrics, temperature, _ = validate("val", config.data.val, data.val, trainer, log)
    trainer.early_stopping.update(metrics.get(config.evaluate.deciding_metric, UNSCORED))
    state = trainer.early_stopping.state()
    checkpoints.add_evaluation(metrics, state, temperature, log.records_in_memory())
    step = trainer.step_count
    if session.may_end_at_report:  # the trial is then scored by, or continued from, this step
        checkpoints.wait()
    session.report({"step": step, "epoch": schedule.epoch(step), **metrics})


def run_rank(
    config: Config,
    session: Session,
    uri: str,
    run_id: str,
    spool: Path,
    label: str = "",
    run_spec: RunSpec | None = None,
) -> Finished:
    """Run `train_worker` with rank 0 reporting to the MLflow run; add the seconds it took.

    The first rank of every other node that sees the store reports the load of its node, to the run
    or, with many nodes, to rank 0. ``label`` is for `RunLog`. With ``run_spec``, rank 0 creates the
    run as soon as the store responds; the other nodes find it.
    """
    began = time.monotonic()
    first_of_node = int(os.environ.get("LOCAL_RANK", "0")) == 0
    main = session.world.is_main
    with translate_errors(config, session.world):
        load = cluster_load(config, session.world, first_of_node)
    tracker = None
    if main and run_spec is not None:
        with contextlib.suppress(OSError):  # on a full disk the driver creates the run at its end
            save_run_spec(spool, run_spec)
    if main or (first_of_node and load is None and visible_here(uri)):
        sampler = load.metrics if load else None
        tracker = Tracker(uri, run_id, spool, system_metrics=first_of_node, sampler=sampler)
    try:
        with translate_errors(config, session.world):
            log = RunLog(tracker if main else None, label)
            outcome = train_worker(config, session, log, uri)
    finally:
        if load is not None:
            load.close()
        if tracker is not None:
            tracker.close(TRACKER_CLOSE_SECONDS, last=False)  # the driver ends the run
    return outcome.model_copy(update={"seconds": round(time.monotonic() - began, 1)})


def cluster_load(config: Config, world: World, first_of_node: bool) -> ClusterLoad | None:
    """Return the load over more than ``tracking.max_logged_nodes`` nodes; every rank calls it.

    None with fewer nodes, and on ranks that neither report the load of their node nor log it.
    """
    first = torch.zeros(world.size, device=world.device)
    first[world.rank] = float(first_of_node)
    senders = world.sum(first).nonzero().flatten().tolist()
    if len(senders) <= config.tracking.max_logged_nodes or not (first_of_node or world.is_main):
        return None
    return ClusterLoad(world.key_value_store(), world.rank, senders)


class Validation(NamedTuple):
    """The metrics of a set by their full names, and the temperature that fits its scores.

    A set that is scored once is also summarized, which takes longer.
    """

    metrics: dict[str, float]
    temperature: float
    summary: EvaluationSummary | None = None


def validate(split: str, uri: str, content: str, trainer: Trainer, log: RunLog) -> Validation:
    """Score the averaged weights on a set; returns the same result on every rank.

    Raises UserError, on every rank, if the content hash of the set is not ``content`` any more, or
    if too many samples cannot be read.
    """
    config, world = trainer.config, trainer.world
    loader = build_eval_loader(uri, config, world.rank, world.size)
    check_same_content(uri, loader.manifest, content, world)
    classes = loader.manifest.classes
    detector = trainer.averaged()
    result = evaluate(detector, loader, classes, config.evaluate, world, trainer.precision)
    loader.bad.check(world)
    if result is not None:
        pictures = config.evaluate.pictures
        log.evaluated(split, trainer.step_count, result, loader.shards, classes, pictures)
    found = None
    if result is not None:
        metrics = {f"{split}/{name}": value for name, value in result.result.metrics.items()}
        summary = None
        if split == "test":
            summary = summarize(result.table, classes, config.evaluate.protocol)
        found = Validation(metrics, fit_temperature(result.table), summary)
    validation: Validation = world.broadcast(found)
    return validation


def finish(
    config: Config,
    trainer: Trainer,
    checkpoints: CheckpointManager,
    log: RunLog,
    schedule: StepSchedule,
    test: str | None,
) -> Finished:
    """Select the weights (best on ``data.val``, else the last) and score ``data.test`` once.

    ``test`` is the content hash of that set.
    """
    last, selected = checkpoints.finish()
    metrics = dict(selected.meta.metrics or {})
    log.selected(selected.step, join(str(checkpoints.store.storage), selected.name), metrics)
    summary = None
    if config.data.test and test:
        scored = validate("test", config.data.test, test, trainer, log)
        metrics, summary = {**metrics, **scored.metrics}, scored.summary
    return Finished(
        checkpoint=selected.name,
        best_step=selected.step,
        total_steps=schedule.total_steps,
        classes=selected.meta.classes,
        spec=selected.meta.spec,
        metrics=metrics,
        test=summary,
        weights_sha256=last.meta.weights_sha256,
        ema_sha256=last.meta.ema_sha256,
    )


def compute_threads(config: Config) -> int:
    """Return the number of compute threads of one worker."""
    return config.ray.threads_per_worker or max(1, int(config.ray.cpus_per_worker))
