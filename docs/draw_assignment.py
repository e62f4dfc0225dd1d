"""Draw the figures of assignment.md: the assignment of one image by each assigner.

    python -m docs.draw_assignment --shards SHARDSET --without-photo

Trains a small detector on the shard set for a few minutes, to get boxes and scores of a partly
trained network, then assigns by each assigner from the same predictions.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from model import Detector
from model.assign import ASSIGNERS, build_assigner
from model.boxes import decode
from pipeline.config import Config
from pipeline.data import build_eval_loader, build_train_loader, load_manifest
from pipeline.distributed.world import World
from pipeline.training.trainer.trainer import Trainer

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
TITLES = ("learns to classify", "learns to regress")


class Example(NamedTuple):
    """One image in the network's input size, with its objects."""

    name: str
    pixels: Tensor
    """(3, S, S) uint8"""
    boxes: Tensor
    """(M, 4)"""
    labels: Tensor
    """(M,)"""


def examples(config: Config) -> Iterator[Example]:
    """Yield all images of the shard set, in order."""
    assert config.data.train is not None
    for batch in build_eval_loader(config.data.train, config, rank=0, world_size=1):
        for pixels, sample, size in zip(batch.images, batch.samples, batch.sizes, strict=True):
            boxes = torch.as_tensor(np.asarray(sample.boxes), dtype=torch.float32).reshape(-1, 4)
            boxes = boxes * (pixels.shape[-1] / size.float()).repeat(2)
            yield Example(
                sample.file_name, pixels, boxes, torch.as_tensor(np.asarray(sample.labels))
            )


def train(config: Config, steps: int) -> Detector:
    """Train a detector for a few steps."""
    assert config.data.train is not None
    classes = load_manifest(config.data.train).classes
    trainer = Trainer(config, World(), len(classes), total_steps=2 * steps)
    for batch in build_train_loader(config.data.train, config, rank=0, world_size=1):
        trainer.step(batch)
        if trainer.step_count == steps:
            break
    return trainer.detector.eval()


def draw(name: str, detector: Detector, example: Example, photo: bool) -> Figure:
    """Draw the positives of each task in the colour of their object; ignored anchors as dots."""
    size = detector.image_size
    with torch.no_grad():
        deltas, logits = detector(example.pixels[None])
    assigner = build_assigner(name, anchor_strides=detector.anchor_strides)
    assigned = assigner(
        detector.anchors,
        example.boxes[None],
        example.labels[None],
        decode(deltas, detector.anchors),
        logits.sigmoid(),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    tasks = (
        (assigned.cls_index[0], assigned.cls_quality[0]),
        (assigned.loc_index[0], assigned.loc_weight[0]),
    )
    for axis, title, (index, quality) in zip(axes, TITLES, tasks, strict=True):
        if photo:
            axis.imshow(example.pixels.permute(1, 2, 0) // 2 + 127)
        for box, colour in zip(example.boxes.tolist(), COLOURS, strict=False):
            axis.add_patch(rectangle(box, colour, width=2.5, style="--"))
        draw_anchors(axis, detector.anchors, index, quality)
        axis.set_title(f"{title}: {int((index >= 0).sum())} anchors", fontsize=10)
        axis.set(xlim=(-12, size + 12), ylim=(size + 12, -12), xticks=[], yticks=[], aspect="equal")
    figure.suptitle(name, fontsize=11)
    return figure


def draw_anchors(axis: Axes, anchors: Tensor, index: Tensor, quality: Tensor) -> None:
    """Draw positives as boxes, fainter with lower weight, and ignored anchors as black dots."""
    for anchor in (index >= 0).nonzero().flatten().tolist():
        colour = COLOURS[int(index[anchor]) % len(COLOURS)]
        strength = 0.15 + 0.85 * float(quality[anchor])
        axis.add_patch(rectangle(anchors[anchor].tolist(), colour, 0.9, "-", strength))
    ignored = anchors[index == -2]
    centre = (ignored[:, :2] + ignored[:, 2:]) / 2
    axis.plot(*centre.T.tolist(), ".", color="black", markersize=3)


def rectangle(
    box: list[float], colour: str, width: float, style: str, strength: float = 1.0
) -> Rectangle:
    """Return the outline of one box."""
    x1, y1, x2, y2 = box
    return Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width, ls=style, alpha=strength
    )


def main() -> None:
    """Train, draw and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="shard set to train on and draw from")
    parser.add_argument(
        "--objects",
        type=int,
        default=6,
        help="draw the first image with 2 to this many objects",
    )
    parser.add_argument("--without-photo", action="store_true", help="draw boxes only")
    parser.add_argument("--size", type=int, default=256, help="side of the network's input")
    parser.add_argument("--steps", type=int, default=60, help="training steps before drawing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    options = parser.parse_args()
    config = Config.from_dict(
        {
            "data": {"train": options.shards},
            "model": {"image_size": options.size},
            "train": {"lr": 0.1, "batch_size": 8, "warmup_steps": 20},
        }
    )
    chosen = next((s for s in examples(config) if 1 < len(s.boxes) <= options.objects), None)
    if chosen is None:
        parser.error(f"no image of {options.shards} has 2 to {options.objects} objects")
    detector = train(config, options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in sorted(ASSIGNERS):
        figure = draw(name, detector, chosen, not options.without_photo)
        figure.savefig(options.out / f"{name}.png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)
    print(f"{chosen.name}: {options.out}")


if __name__ == "__main__":
    main()
