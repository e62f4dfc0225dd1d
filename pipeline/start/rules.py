"""The rules by which a recipe is proposed: all their numbers, and a function for each choice.

Each function returns the fields that it sets and one line that says why. Fields that the user has
given replace those of a rule, and later rules follow them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model.anchor_shapes import AnchorShapes
from model.names import TIMM_PREFIX
from model.published import IMAGENET
from pipeline.progress import counted
from pipeline.reports.doctor.finding import percent
from pipeline.start.facts import Machine, SetFacts

MIN_IMAGES = 2  # one to train on, one to validate
# Share of the training images that become validation images, below so many images.
VAL_SHARES = ((500, 0.2), (5_000, 0.1), (math.inf, 0.05))

DRAWN = 0.5  # median share of flat pixels, from which pictures count as drawn; photographs: 0.2
LARGE_SET = 5_000  # images, from which a large network learns more on a GPU
Network = tuple[str, str | None]  # backbone, and its starting weights
NETWORK_SMALL = ("efficientnet_lite0", "imagenet")
NETWORK_LARGE = ("resnet50", "imagenet")
NETWORK_DRAWN: Network = ("slim", None)
NETWORK_WITHOUT_WEIGHTS: Network = ("slim", None)

# Pixels. Classes may differ in details much smaller than the objects: 256 at least.
INPUTS_CPU = (256, 320)
INPUTS_GPU = (256, 320, 384, 512, 640)
SMALL_OBJECT = 32  # pixels of the input that a tenth of the objects may be below
ELONGATED = 0.1  # share of images of more than 2 : 1 from which their aspect ratio is kept

BATCH_CPU, BATCH_GPU = 8, 16  # images per step; of a GPU for each one
EPOCHS = ((1_000, 30), (10_000, 20), (math.inf, 12))  # below so many images
MIN_STEPS = 1_000  # fewer do not converge, however small the set
EVALUATIONS = 10  # of the validation images in a training
MAX_WORKERS_CPU = 4
MAX_LOADERS = 8  # loader processes of a GPU

# Fields of the optimizer: for networks that start from weights, and for random ones.
OPTIMIZER_PRETRAINED: dict[str, Any] = {"train.optimizer": "adamw"}
OPTIMIZER_RANDOM: dict[str, Any] = {"train.optimizer": "sgd"}

ASSIGNER = "mutual_guidance_soft"  # docs/accuracy.md, "Which assigner"

AUGMENTATION = {"data.crop": 0.3, "data.photometric": 0.5}


@dataclass(frozen=True)
class Choice:
    """Fields of the configuration that one rule sets; ``text`` is their value in words."""

    what: str
    text: str
    why: str
    fields: dict[str, Any]


def val_share(images: int) -> float:
    """Return the share of the images of a set that become validation images."""
    return next(share for below, share in VAL_SHARES if images < below)


def choose_network(
    facts: SetFacts,
    machine: Machine,
    missing: Callable[[str, str], str],
    backbone: str | None = None,
) -> Choice:
    """Choose the backbone, unless it is given, and its starting weights.

    ``missing`` says why the weights of a name are not here for a backbone, "" if they are.
    """
    count = f"{facts.images:,} photographs"
    is_large = machine.gpus > 0 and facts.images >= LARGE_SET
    init: str | None
    if backbone is not None:
        init, why = None, "the backbone as given"
        if backbone in IMAGENET or backbone.startswith(TIMM_PREFIX):
            problem = missing(backbone, "imagenet")
            init, why = (None, f"{why}, but {problem}") if problem else ("imagenet", why)
    elif facts.flat >= DRAWN:
        backbone, init = NETWORK_DRAWN
        why = (
            f"drawn pictures ({percent(facts.flat, 1)} flat); if they are photographs, give "
            f"--model.backbone {NETWORK_SMALL[0]}"
        )
    elif is_large and not (problem := missing(*NETWORK_LARGE)):
        (backbone, init), why = NETWORK_LARGE, f"{count} and a GPU can train a large network"
    elif not (unusable := missing(*NETWORK_SMALL)):
        (backbone, init), why = NETWORK_SMALL, f"{count} learn more from it than from scratch"
        if is_large:
            why += f"; {NETWORK_LARGE[0]} would suit them, but {problem}"
    else:
        (backbone, init), why = NETWORK_WITHOUT_WEIGHTS, unusable
    text = f"{backbone} from {init or 'random'} weights"
    return Choice("network", text, why, {"model.backbone": backbone, "model.init": init})


def choose_freezing(stages: int, facts: SetFacts) -> Choice:
    """Choose the stages of the backbone that stay as they are, as the rule of a training does."""
    if not stages:
        return Choice("frozen", "nothing", f"{counted(facts.images, 'image')} train all of it", {})
    text = f"the first {counted(stages, 'stage')} of the backbone"
    why = f"{counted(facts.images, 'image')} are few to train all of it"
    return Choice("frozen", text, why, {"model.freeze_stages": stages})


def choose_input(facts: SetFacts, machine: Machine) -> Choice:
    """Choose the side of the input: the smallest that shows most objects well enough."""
    inputs = INPUTS_GPU if machine.gpus else INPUTS_CPU
    native = -(-max(facts.width, facts.height) // 64) * 64
    sides = [side for side in inputs if side <= native] or [native]
    is_padded = facts.elongated > ELONGATED
    relative = facts.small_side_padded if is_padded else facts.small_side
    side = next((one for one in sides if relative * one >= SMALL_OBJECT), sides[-1])
    small = relative * side
    why = f"a tenth of the objects are below {small:.0f} px there"
    if small < SMALL_OBJECT:
        device = "GPUs" if machine.gpus else "CPUs"
        limit = f"larger is slow on {device}" if side == inputs[-1] else "the images are no larger"
        why += f"; {limit}"
        if side < native:
            why += ", but tiles show them larger (jobs.prepare --tile)"
    fields: dict[str, Any] = {"model.image_size": side}
    if is_padded:
        fields["data.fit"] = "letterbox"
        why += f"; {percent(facts.elongated, 1)} of the images are elongated: padded to a square"
    return Choice("input", f"{side} px", why, fields)


def choose_anchors(default: AnchorShapes, fitted: AnchorShapes | None, missed: str) -> Choice:
    """Choose the anchors that the doctor found, if they fit better; ``missed`` says how well."""
    if fitted is None:
        return Choice("anchors", str(default), f"the default; {missed}", {})
    return Choice(
        "anchors",
        str(fitted),
        missed,
        {
            "model.anchor_base": fitted.base,
            "model.anchor_scales": list(fitted.scales),
            "model.anchor_ratios": list(fitted.ratios),
        },
    )


def choose_assigner() -> Choice:
    """Choose the assigner, which brings its own losses."""
    why = "of six, the highest mean AP on small objects, cells and photographs"
    return Choice("assigner", ASSIGNER, why, {"assign.name": ASSIGNER})


def choose_augmentation() -> Choice:
    """Choose the augmentation beyond the defaults."""
    values = ", ".join(f"{name.split('.')[1]} {value:g}" for name, value in AUGMENTATION.items())
    why = "usual for photographs; add flip_vertical 0.5 if they have no top side"
    return Choice("augmentation", f"flip 0.5, {values}", why, dict(AUGMENTATION))


def choose_batch(
    facts: SetFacts,
    machine: Machine,
    given: int | tuple[int, int] | None = None,
    epochs: float | None = None,
) -> Choice:
    """Choose images per step, the workers, unless they are given, and their cores or loaders.

    A range of workers is counted as its maximum.
    """
    workers = max(given) if isinstance(given, tuple) else given
    why = f"for {machine}"
    if machine.gpus:
        if workers is None:
            # As many as leave enough steps: more would only see small sets more often.
            seen = (epochs or _usual_epochs(facts)) * facts.images
            workers = max(1, min(machine.gpus, int(seen / (MIN_STEPS * BATCH_GPU))))
            if workers < machine.gpus:
                why += f", of which {counted(facts.images, 'image')} need no more"
        batch = BATCH_GPU * workers
        loaders = max(1, min(MAX_LOADERS, machine.cpus // min(workers, machine.gpus) - 1))
        fields: dict[str, Any] = {"data.loader_workers": loaders, "train.lr_scaling": "sqrt"}
        text = f"{counted(workers, 'worker')} with a GPU and {counted(loaders, 'loader')} each"
    else:
        batch = BATCH_CPU
        most = min(machine.cpus, MAX_WORKERS_CPU, batch // 2, facts.images)
        workers = workers or max(1, most)
        cpus = max(1, machine.cpus // workers)
        fields = {"ray.cpus_per_worker": cpus}
        text = f"{counted(workers, 'worker')} of {counted(cpus, 'core')}"
    batch = max(workers, min(batch, facts.images))
    fields = {"train.batch_size": batch, **fields, "ray.workers": given or workers}
    return Choice("batch", f"{counted(batch, 'image')}, {text}", why, fields)


def _usual_epochs(facts: SetFacts) -> float:
    return next(epochs for below, epochs in EPOCHS if facts.images < below)


def choose_schedule(facts: SetFacts, batch: int, epochs: float | None) -> Choice:
    """Choose the epochs, if they are not given, and how often validation images are scored."""
    why = "as given"
    if epochs is None:
        epochs = _usual_epochs(facts)
        why = f"{epochs} epochs are enough for {facts.images} images"
        if epochs * facts.images < MIN_STEPS * batch:
            epochs = math.ceil(MIN_STEPS * batch / facts.images)
            why = (
                f"fewer than {MIN_STEPS} steps do not converge, and {facts.images} images are "
                f"{counted(math.ceil(facts.images / batch), 'step')} an epoch"
            )
    every = max(1, round(epochs / EVALUATIONS))
    steps = math.ceil(epochs * facts.images / batch)
    text = f"{steps} steps ({epochs:g} epochs), scored every {counted(every, 'epoch')}"
    fields = {"train.epochs": epochs, "train.checkpoint_every": every, "evaluate.every": every}
    return Choice("schedule", text, why, fields)


def choose_optimizer(init: str | None) -> Choice:
    """Choose the optimizer, and the rates that differ from its defaults."""
    fields = OPTIMIZER_PRETRAINED if init else OPTIMIZER_RANDOM
    text = ", ".join(
        str(value) if name == "train.optimizer" else f"{name.split('.')[1]} {value:g}"
        for name, value in fields.items()
    )
    return Choice("optimizer", text, f"for {init or 'random'} weights", dict(fields))


def choose_precision(machine: Machine) -> Choice:
    """Choose the arithmetic."""
    why = "the fastest that the GPU has" if machine.gpus else "the fastest that these CPUs have"
    return Choice("precision", "auto", why, {"train.precision": "auto"})


def override(choice: Choice, given: Mapping[str, Any]) -> Choice:
    """Return the choice with the fields that the user has given in place of those of the rule."""
    own = {
        name: given[name]
        for name, value in choice.fields.items()
        if name in given and given[name] != value
    }
    if not own:
        return choice
    values = ", ".join(f"{name} {value}" for name, value in own.items())
    return Choice(choice.what, values, "as given", {**choice.fields, **own})
