"""Evaluate a detector on Ray workers, with the figures of a single process.

A part is a range of whole batches: a detection may depend, in its last bits, on the images that are
in its batch, and so the batches are those of a single process. Workers return match tables.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from model import build_detector
from pipeline.config import Config, RayConfig
from pipeline.data import build_eval_loader, load_manifest, require_classes
from pipeline.data.loading.bad_samples import BadSamples
from pipeline.distributed.ray_cluster import gpu_choice, ray_cluster
from pipeline.distributed.world import World
from pipeline.errors import OutageError, UserError
from pipeline.evaluation.evaluate import (
    Evaluation,
    Seconds,
    Timed,
    detect,
    match_detections,
)
from pipeline.evaluation.model_evaluation import (
    ModelEvaluation,
    default_device,
    evaluation_config,
)
from pipeline.evaluation.protocol import score
from pipeline.metrics import MatchTable
from pipeline.progress import Progress
from pipeline.registry import LoadedDetector

_PARTS_PER_WORKER = 8  # so that workers end at about the same time


class PartResult(NamedTuple):
    """The matches of a part, the number of its samples, and those that could not be read."""

    table: MatchTable
    samples: int
    problems: list[str]
    seconds: Seconds


def evaluate_on_ray(
    loaded: LoadedDetector,
    data: str,
    workers: int,
    config: Config | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation:
    """Score a detector on a shard set as `evaluate_model` does, on a number of Ray workers.

    Each worker has a GPU if the cluster has enough. Raises UserError, and OutageError if a store
    does not respond.
    """
    manifest = load_manifest(data)
    require_classes(data, manifest, loaded.classes, loaded.uri)
    settings = evaluation_config(loaded, config)
    uri = data if "://" in data else str(Path(data).resolve())
    parts = split(manifest.samples, settings.evaluate.batch_size, workers)
    results = _run(loaded, uri, settings, parts, workers, progress)
    bad = BadSamples(settings.data.max_bad_fraction)
    for result in results:
        bad.count(result.samples, result.problems)
    bad.check(World())
    began = time.perf_counter()
    table = MatchTable.concatenate([result.table for result in results]).sorted_by_image_id()
    metrics = score(table, loaded.classes, settings.evaluate.protocol)
    seconds = Seconds(
        sum(result.seconds.predict for result in results),
        sum(result.seconds.match for result in results),
        time.perf_counter() - began,
    )
    evaluation = Evaluation(metrics, table, seconds)
    return ModelEvaluation(loaded.uri, manifest, loaded.classes, evaluation)


def split(samples: int, batch_size: int, workers: int) -> list[range]:
    """Divide samples into ranges of whole batches, several per worker where there are enough."""
    batches = -(-samples // batch_size)
    size = batch_size * max(1, -(-batches // (workers * _PARTS_PER_WORKER)))
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


def evaluate_part(loaded: LoadedDetector, uri: str, settings: Config, part: range) -> PartResult:
    """Match the detections in a range of the samples of a set. Raises UserError."""
    device = default_device()
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    batches = build_eval_loader(uri, settings, 0, 1, part)
    found = Timed(detect(detector.to(device).eval(), batches, settings.evaluate, device))
    table = match_detections(found)
    return PartResult(table, *batches.bad.pending(), Seconds(found.inside, found.outside()))


def _run(
    loaded: LoadedDetector,
    uri: str,
    settings: Config,
    parts: list[range],
    workers: int,
    progress: Progress | None,
) -> list[PartResult]:
    import ray

    results: dict[int, PartResult] = {}
    running: dict[Any, int] = {}
    with ray_cluster(RayConfig(workers=1)):
        choice = gpu_choice(RayConfig(workers=workers), ray.cluster_resources())
        task = ray.remote(num_cpus=1, num_gpus=1 if choice.used else 0)(evaluate_part)
        model, shared = ray.put(loaded), ray.put(settings)
        if progress is not None:
            progress.restart()  # the start of Ray is not a part of the rate
        left = list(enumerate(parts))[::-1]
        try:
            while left or running:
                while left and len(running) < workers:
                    number, part = left.pop()
                    running[task.remote(model, uri, shared, part)] = number
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(ready)
                results[number] = _result(ray, ready)
                if progress is not None:
                    progress.advance(results[number].samples)
        finally:
            for reference in running:
                ray.cancel(reference)
    if progress is not None:
        progress.finish()
    return [results[number] for number in range(len(parts))]


def _result(ray: Any, reference: Any) -> PartResult:
    try:
        result: PartResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        known = isinstance(error.cause, UserError | OutageError)
        raise (error.cause if known else error) from None
    return result
