"""Measure on this machine how long a training takes: a few real steps of its workers."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.data import load_manifest
from pipeline.errors import UserError
from pipeline.training.fit import check_weighted_classes

WARM_STEPS = 2
MIN_STEPS, MAX_STEPS, STEP_SECONDS = 3, 50, 4.0  # steps that are timed, until so many seconds
MAX_SECONDS = 45.0  # of all steps, on a machine that is slow or busy
EVALUATED_IMAGES = 16
MEASURED_EPOCHS = 1000.0  # more than are run
START_SECONDS = 30.0  # Ray, MLflow and its migrations, imports in workers, the end of a run


@dataclass(frozen=True)
class Duration:
    """Seconds of a training on this machine."""

    step: float
    """Of one step, all workers together."""
    evaluated_image: float
    """Of a validation or test image, of one worker."""
    total: float
    load: float = 0.0
    """Processes of other programs that were ready to run, as the system's load average."""


def measure(config: Config, images: int, val_images: int, test_images: int) -> Duration:
    """Time real steps, one process per worker of the recipe, all at the same time.

    Gradients are not exchanged, and random weights are used. Raises UserError if a step is not
    possible, such as for lack of memory, or if a class weight is for an unknown class.
    """
    assert config.data.train is not None, "the proposal has set it"
    check_weighted_classes(config, load_manifest(config.data.train).classes)
    workers = config.ray.max_workers if config.ray.enabled else 1
    load = os.getloadavg()[0]  # before this adds to it
    tree = config.model_dump(mode="json")
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    try:
        with ProcessPoolExecutor(workers, context) as pool:
            timed = list(
                pool.map(_time_worker, [tree] * workers, range(workers), [workers] * workers)
            )
    except (OSError, RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"a training step of this recipe fails here: {reason}; try a smaller "
            "train.micro_batch or model.image_size"
        ) from None
    step, image = (max(values) for values in zip(*timed, strict=True))
    epochs = config.train.epochs_of(images)
    steps = math.ceil(epochs * images / config.train.batch_size)
    evaluations = math.ceil(epochs / config.evaluate.every)
    scored = (evaluations * val_images + test_images) / workers
    return Duration(step, image, START_SECONDS + steps * step + scored * image, load)


def _time_worker(tree: dict[str, Any], rank: int, workers: int) -> tuple[float, float]:
    """Return the seconds of a step and of an evaluated image of one worker."""
    # Imported in the process of the worker: torch, and everything that trains.
    import torch

    from pipeline.data import build_eval_loader, build_train_loader, load_manifest
    from pipeline.distributed.world import World
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.malloc import keep_freed_memory
    from pipeline.training.trainer.trainer import Trainer
    from pipeline.training.worker import compute_threads

    # As many steps as are measured, however short the training.
    config = Config.from_dict(tree).replace({"train.epochs": MEASURED_EPOCHS})
    torch.set_num_threads(compute_threads(config))
    keep_freed_memory()
    cuda = torch.cuda.is_available() and config.ray.gpu is not False
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    world = World(device=device)
    assert config.data.train is not None, "the proposal has set it"
    loader = build_train_loader(config.data.train, config, rank, workers)
    classes = loader.manifest.classes
    trainer = Trainer(config, world, len(classes), loader.total_steps, classes)
    seconds: list[float] = []
    first = began = time.monotonic()
    for number, batch in enumerate(loader):
        trainer.step(batch)
        if cuda:
            torch.cuda.synchronize(device)
        now = time.monotonic()
        if number >= WARM_STEPS:
            seconds.append(now - began)
        began = now
        enough = len(seconds) >= MIN_STEPS and sum(seconds) >= STEP_SECONDS
        if enough or len(seconds) >= MAX_STEPS or (seconds and now - first > MAX_SECONDS):
            break
    step = statistics.median(seconds) if seconds else 0.0
    uri = config.data.val or config.data.test
    if uri is None:
        return step, 0.0
    part = range(min(EVALUATED_IMAGES, load_manifest(uri).samples))
    scored = build_eval_loader(uri, config, 0, 1, part)
    began = time.monotonic()
    evaluate(trainer.averaged(), scored, classes, config.evaluate, world, trainer.precision)
    return step, (time.monotonic() - began) / len(part)
