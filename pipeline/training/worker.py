"""What every rank runs, read top to bottom: set up, fit, validate, finish."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints.manager import CheckpointManager
from pipeline.checkpoints.store import SCORE
from pipeline.config import Config
from pipeline.data import (
    Manifest,
    build_eval_loader,
    build_train_loader,
    load_manifest,
    require_classes,
)
from pipeline.data.loading.prefetch_plan import open_shards
from pipeline.distributed.world import mean_over_ranks
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate
from pipeline.malloc import keep_freed_memory
from pipeline.tracking import Tracker
from pipeline.training.error_hints import explained
from pipeline.training.run_log import RunLog
from pipeline.training.session import Session
from pipeline.training.step_schedule import Steps
from pipeline.training.stop import Requests
from pipeline.training.trainer.assignment_health import EVERY, assignment_health
from pipeline.training.trainer.nonfinite_dump import kept_if_not_finite
from pipeline.training.trainer.profiler import traced
from pipeline.training.trainer.trainer import Trainer

CLOSE_SECONDS = 30.0  # what the store does not take by then waits in the spool


def train_worker(
    config: Config, session: Session, log: RunLog, tracking_uri: str | None = None
) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the beginning, to the end; every rank calls it.

    A step is saved before it is evaluated, since whoever ends the training may not wait so long;
    then the next start evaluates it.
    Returns the final figures and the name of the checkpoint that holds the chosen weights.
    """
    torch.set_num_threads(compute_threads(config))
    keep_freed_memory()
    assert config.data.train is not None, "fit() has checked it"
    shards, world = open_shards(config.data.train, config), session.world
    manifest = shards.manifest
    steps = Steps(config, manifest.samples)
    trainer = Trainer(config, world, len(manifest.classes), steps.total)
    with contextlib.closing(CheckpointManager(config, session.store, trainer)) as checkpoints:
        data = {"data": manifest.content_hash}
        if config.data.val:
            val = load_manifest(config.data.val, config.data.retries)
            data["data_val"] = val.content_hash
        fits = partial(check_data_unchanged, config, manifest, data)
        found = checkpoints.restore(fits)
        if found is None and config.model.init:
            log.started_from(trainer.start_from(manifest.classes, tracking_uri))
        loader = build_train_loader(
            shards, config, world.rank, world.size, start_step=trainer.step_count
        )
        title = f"{config.model.backbone}-{config.model.neck} with {config.assign.name}"
        log.start(trainer.step_count, steps, title, world.size)
        if found and "patience" in found:
            trainer.patience.load(found["patience"])
        elif found and trainer.step_count in steps.evaluations and "val/ap" not in found:
            evaluate_step(config, trainer, checkpoints, log, session, steps)
        requests = Requests(session.asked, world)
        traced_steps = config.train.profile_steps if world.is_main else 0
        for batch in traced(loader, traced_steps, log.profile):
            if trainer.patience.exhausted:
                log.stopped_early(trainer.step_count, trainer.patience)
                break
            with kept_if_not_finite(session.store.storage, batch, trainer):
                parts = trainer.step(batch)
            step = trainer.step_count
            if step % config.train.log_every == 0 or step == steps.total:
                log.step(step, mean_over_ranks(parts, world), trainer.learning_rate)
            if step % (EVERY * config.train.log_every) == 0 or step == steps.total:
                log.figures(step, assignment_health(trainer, batch))
            request = requests.at(step)
            if step in steps.checkpoints or checkpoints.due(step) or request:
                checkpoints.save({**describe(config, manifest, trainer, steps), **data})
            if step in steps.evaluations and not (request and request.stop):
                evaluate_step(config, trainer, checkpoints, log, session, steps)
                request = request or session.asked()  # that was long
            if request:
                log.asked(step, request)
                missing = checkpoints.missing() if request.stop else None
                if not missing:
                    log.saved(step, request)
                request.obey(step, missing)
        return finish(config, trainer, checkpoints, log)


def describe(config: Config, manifest: Manifest, trainer: Trainer, steps: Steps) -> dict[str, Any]:
    """The readable half of a checkpoint, before its evaluation."""
    return {
        "step": trainer.step_count,
        "epoch": steps.epoch(trainer.step_count),
        # What was not evaluated is kept as the latest alone.
        **({SCORE: -1.0} if config.data.val else {}),
        "classes": manifest.classes,
        "spec": trainer.detector.spec,
        "config": config.recorded(),
    }


def evaluate_step(
    config: Config,
    trainer: Trainer,
    checkpoints: CheckpointManager,
    log: RunLog,
    session: Session,
    steps: Steps,
) -> None:
    """Score the present step on ``data.val``, and note that in its checkpoint."""
    assert config.data.val is not None, "or there are no such steps"
    metrics = validate("val", config.data.val, trainer, log)
    score = metrics.get("val/ap", -1.0)
    trainer.patience.saw(score)
    checkpoints.amend({**metrics, SCORE: score, "patience": trainer.patience.state()})
    step = trainer.step_count
    session.report({"step": step, "epoch": steps.epoch(step), **metrics})


def check_data_unchanged(
    config: Config, manifest: Manifest, data: Mapping[str, str], meta: Mapping[str, Any]
) -> None:
    """Raise UserError if a checkpoint was made on other data.

    Its position would mean nothing, or its score on ``data.val``.
    """
    train = str(config.data.train)
    require_classes(train, manifest, meta["classes"], "the checkpoint to go on from")
    for key, uri in (("data", train), ("data_val", config.data.val)):
        content = data.get(key, "")
        before = meta.get(key, content)  # older checkpoints say nothing of data.val
        if content != before:
            raise UserError(
                f"{uri} is not the data that this run was begun with (content {content[:12]}, "
                f"was {before[:12]}); restore it, or choose another --run name"
            )


def run_rank(
    config: Config, session: Session, uri: str, run_id: str, spool: Path
) -> dict[str, Any]:
    """`train_worker` with rank 0 writing the MLflow run; adds the seconds it took.

    The first rank of every other node adds that node's load.
    """
    began = time.monotonic()
    first_of_node = int(os.environ.get("LOCAL_RANK", "0")) == 0
    main = session.world.is_main
    tracker = None
    if main or first_of_node:
        tracker = Tracker(uri, run_id, spool, system_metrics=first_of_node)
    try:
        with explained(config, session.world):
            outcome = train_worker(config, session, RunLog(tracker if main else None), uri)
    finally:
        if tracker is not None:
            tracker.close(CLOSE_SECONDS)
    return {**outcome, "seconds": round(time.monotonic() - began, 1)}


def validate(split: str, uri: str, trainer: Trainer, log: RunLog) -> dict[str, float]:
    """Score the averaged weights on a set; the same figures on every rank."""
    config, world = trainer.config, trainer.world
    loader = build_eval_loader(uri, config, world.rank, world.size)
    classes = loader.manifest.classes
    result = evaluate(trainer.averaged(), loader, classes, config.evaluate, world)
    if result is not None:
        pictures = config.evaluate.pictures
        log.evaluated(split, trainer.step_count, result, loader.shards, classes, pictures)
    metrics = result.result.metrics if result is not None else {}
    return world.share({f"{split}/{name}": value for name, value in metrics.items()})


def finish(
    config: Config, trainer: Trainer, checkpoints: CheckpointManager, log: RunLog
) -> dict[str, Any]:
    """Choose the weights (best on ``data.val``, else the last) and score ``data.test`` once."""
    last, chosen = checkpoints.finish()
    metrics = {name: value for name, value in chosen.meta.items() if "/" in name}
    if config.data.test:
        metrics |= validate("test", config.data.test, trainer, log)
    return {
        "checkpoint": chosen.name,
        "step": chosen.step,
        "steps": last.step,
        "classes": chosen.meta["classes"],
        "spec": chosen.meta["spec"],
        "metrics": metrics,
        "weights_sha256": last.meta["weights_sha256"],
        "ema_sha256": last.meta["ema_sha256"],
    }


def compute_threads(config: Config) -> int:
    """Threads of one worker's compute."""
    return config.ray.threads_per_worker or max(1, int(config.ray.cpus_per_worker))
