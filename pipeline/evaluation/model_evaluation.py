"""Evaluate a trained detector, wherever it is, on a shard set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from model import build_detector
from pipeline.config import Config
from pipeline.data import EvalBatch, Manifest, build_eval_loader, load_manifest, require_classes
from pipeline.distributed.world import World
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import Evaluation, LabelMaps, evaluate
from pipeline.evaluation.latency import seconds_per_image
from pipeline.progress import Progress
from pipeline.registry import LoadedDetector


@dataclass(frozen=True)
class ModelEvaluation:
    """What was evaluated, on what, and the result."""

    model: str
    data: Manifest
    classes: list[str]  # of the labels in the result
    evaluation: Evaluation


def evaluate_model(
    loaded: LoadedDetector,
    data: str,
    world: World | None = None,
    classes: Sequence[str] | None = None,
    config: Config | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation | None:
    """Score a detector on a shard set with the settings of its training; None except on rank 0.

    The set must have the classes of the detector, in the same order, unless ``classes`` names those
    to score: others are left out, of the objects and of the detections. ``config`` gives settings
    of reading, such as loader processes. ``progress`` counts the images of this rank. Without a
    ``world`` this process evaluates alone, on a GPU if there is one. Raises UserError.
    """
    world = world or World(device=default_device())
    manifest = load_manifest(data)
    labels = None
    if classes is None:
        require_classes(data, manifest, loaded.classes, loaded.uri)
    else:
        for owner, known in ((data, manifest.classes), (loaded.uri, loaded.classes)):
            missing = [name for name in classes if name not in known]
            if missing:
                raise UserError(f"{owner} does not have the class {missing[0]!r}")
        labels = LabelMaps.to(classes, manifest.classes, loaded.classes)
    detector = build_detector(**loaded.spec.model_dump())
    detector.load_state_dict(loaded.state)
    settings = evaluation_config(loaded, config)
    loader = build_eval_loader(data, settings, world.rank, world.size)
    batches = counted_batches(loader, progress)
    scored = list(classes or loaded.classes)
    result = evaluate(
        detector.to(world.device).eval(), batches, scored, settings.evaluate, world, labels=labels
    )
    if result is None:
        return None
    return ModelEvaluation(loaded.uri, manifest, scored, result)


def counted_batches(batches: Iterable[EvalBatch], progress: Progress | None) -> Iterator[EvalBatch]:
    """Yield the batches, and count their images in ``progress``."""
    if progress is None:
        yield from batches
        return
    progress.restart()
    for batch in batches:
        yield batch
        progress.advance(len(batch.image_ids))
    progress.finish()


def default_device() -> torch.device:
    """Return the GPU of this process if it has one, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def latencies(detectors: Sequence[LoadedDetector], config: Config | None = None) -> list[float]:
    """Return the median seconds per image of detectors on this machine, measured in turn.

    On its GPU if it has one.
    """
    device = default_device()
    built = []
    for loaded in detectors:
        detector = build_detector(**loaded.spec.model_dump())
        detector.load_state_dict(loaded.state)
        built.append((detector.to(device).eval(), evaluation_config(loaded, config).evaluate))
    return seconds_per_image(built, device)


def evaluation_config(loaded: LoadedDetector, config: Config | None = None) -> Config:
    """Return the configuration that evaluates a detector as its training did."""
    return (config or Config()).replace(
        {
            "data.fit": loaded.fit,
            "model.image_size": loaded.spec.image_size,
            **{f"evaluate.{name}": value for name, value in loaded.evaluate.items()},
        }
    )
