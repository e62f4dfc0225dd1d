"""Draws the pictures of assignment.md: what each assigner says of one scene.

    python -m docs.draw_assignment

Trains a small detector on generated scenes for a minute or two, so that boxes and scores are those
of a network half-way, then lets every assigner look at the same predictions.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from model import Detector, build_detector
from model.assign import ASSIGNERS, build_assigner
from model.boxes import decode
from model.loss import DetectionLoss
from pipeline.data.shapes import CLASSES, draw_scene

SIZE, BATCH = 128, 16
SCENE = 21
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
TITLES = ("learns to classify", "learns to regress")


def scene(split: str, index: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """Image (S, S, 3), boxes (M, 4) and labels (M,)."""
    image, objects = draw_scene(0, split, index, SIZE)
    labels = torch.tensor([CLASSES.index(x.name) for x in objects])
    return image, torch.tensor([x.box for x in objects], dtype=torch.float32), labels


def to_batch(images: list[np.ndarray]) -> Tensor:
    """Images (B, 3, S, S)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def train(steps: int) -> Detector:
    """A detector that has begun to see."""
    torch.manual_seed(0)
    detector = build_detector("slim", "retinanet", len(CLASSES), SIZE).train()
    loss = DetectionLoss(build_assigner("mutual_guidance"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for step in range(steps):
        images, boxes, labels = zip(
            *(scene("train", step * BATCH + i) for i in range(BATCH)), strict=True
        )
        parts = loss(
            detector(to_batch(list(images))),
            detector.anchors,
            torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True),
            torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-1),
        )
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
    return detector.eval()


def draw(name: str, detector: Detector) -> Figure:
    """Anchors that each task learns, in the colour of their object; ignored ones are dots."""
    image, boxes, labels = scene("test", SCENE)
    with torch.no_grad():
        deltas, logits = detector(to_batch([image]))
    assigner = build_assigner(name, anchor_strides=detector.anchor_strides)
    answer = assigner(
        detector.anchors, boxes[None], labels[None], decode(deltas, detector.anchors),
        logits.sigmoid(),
    )  # fmt: skip
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    tasks = (
        (answer.cls_index[0], answer.cls_quality[0]),
        (answer.loc_index[0], answer.loc_weight[0]),
    )
    for axis, title, (index, quality) in zip(axes, TITLES, tasks, strict=True):
        axis.imshow(image // 2 + 127)
        for box, colour in zip(boxes.tolist(), COLOURS, strict=False):
            axis.add_patch(rectangle(box, colour, width=2.5, style="--"))
        draw_anchors(axis, detector.anchors, index, quality)
        axis.set_title(f"{title}: {int((index >= 0).sum())} anchors", fontsize=10)
        axis.set(xlim=(-12, SIZE + 12), ylim=(SIZE + 12, -12), xticks=[], yticks=[])
    figure.suptitle(name, fontsize=11)
    return figure


def draw_anchors(axis: Axes, anchors: Tensor, index: Tensor, quality: Tensor) -> None:
    """Positives as boxes, the fainter the less they count; ignored ones as grey dots."""
    for anchor in (index >= 0).nonzero().flatten().tolist():
        colour = COLOURS[int(index[anchor]) % len(COLOURS)]
        strength = 0.15 + 0.85 * float(quality[anchor])
        axis.add_patch(rectangle(anchors[anchor].tolist(), colour, 0.9, "-", strength))
    spared = anchors[index == -2]
    centre = (spared[:, :2] + spared[:, 2:]) / 2
    axis.plot(*centre.T.tolist(), ".", color="black", markersize=3)


def rectangle(
    box: list[float], colour: str, width: float, style: str, strength: float = 1.0
) -> Rectangle:
    """The outline of one box."""
    x1, y1, x2, y2 = box
    return Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width, ls=style, alpha=strength
    )


def main() -> None:
    """Train, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="training steps before drawing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    options = parser.parse_args()
    detector = train(options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in sorted(ASSIGNERS):
        figure = draw(name, detector)
        figure.savefig(options.out / f"{name}.png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
