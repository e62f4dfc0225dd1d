"""The rules follow the pictures, the size of the set, the objects, the machine and the user."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from model.anchor_shapes import AnchorShapes
from pipeline.start import rules
from pipeline.start.facts import Machine, SetFacts

FACTS = SetFacts(
    images=200,
    val_images=50,
    test_images=0,
    width=640,
    height=480,
    small_side=0.1,
    small_side_padded=0.1,
    elongated=0.0,
    flat=0.1,
)
LAPTOP = Machine(cpus=2)
GPU = Machine(cpus=16, gpus=1, gpu_name="NVIDIA H100")


def here(backbone: str, name: str) -> str:
    return ""


def absent(backbone: str, name: str) -> str:
    return f"put {backbone}.pth there"


@pytest.mark.parametrize(
    ("facts", "machine", "missing", "backbone", "init"),
    [
        (FACTS, LAPTOP, here, "efficientnet_lite0", "imagenet"),
        (FACTS, GPU, here, "efficientnet_lite0", "imagenet"),
        (replace(FACTS, images=20_000), GPU, here, "resnet50", "imagenet"),
        (replace(FACTS, images=20_000), LAPTOP, here, "efficientnet_lite0", "imagenet"),
        (replace(FACTS, flat=0.8), LAPTOP, here, "slim", None),
        (FACTS, LAPTOP, absent, "slim", None),
    ],
)
def test_network_follows_pictures_size_and_machine(
    facts: SetFacts,
    machine: Machine,
    missing: Callable[[str, str], str],
    backbone: str,
    init: str | None,
) -> None:
    choice = rules.choose_network(facts, machine, missing)
    assert choice.fields == {"model.backbone": backbone, "model.init": init}


def test_large_network_needs_its_weights_and_the_reason_says_so() -> None:
    def only_small(backbone: str, name: str) -> str:
        return "" if backbone == "efficientnet_lite0" else absent(backbone, name)

    choice = rules.choose_network(replace(FACTS, images=20_000), GPU, only_small)
    assert choice.fields["model.backbone"] == "efficientnet_lite0"
    assert "resnet50 would suit them, but put resnet50.pth there" in choice.why


@pytest.mark.parametrize("backbone", [None, "resnet18", "timm:convnext_atto"])
def test_missing_weights_are_named(backbone: str | None) -> None:
    choice = rules.choose_network(FACTS, LAPTOP, absent, backbone)
    assert choice.fields["model.init"] is None
    assert f"put {backbone or 'efficientnet_lite0'}.pth there" in choice.why


@pytest.mark.parametrize(
    ("backbone", "init"),
    [("slim", None), ("resnet18", "imagenet"), ("timm:convnext_atto", "imagenet")],
)
def test_given_backbone_starts_from_weights_that_it_has(backbone: str, init: str | None) -> None:
    choice = rules.choose_network(FACTS, LAPTOP, here, backbone)
    assert choice.fields == {"model.backbone": backbone, "model.init": init}


@pytest.mark.parametrize(
    ("small_side", "width", "machine", "side"),
    [
        (0.5, 640, LAPTOP, min(rules.INPUTS_CPU)),
        (0.001, 640, LAPTOP, max(rules.INPUTS_CPU)),
        (0.001, 640, GPU, max(rules.INPUTS_GPU)),
        (0.001, 200, LAPTOP, 256),  # no larger than the images
        (0.001, 100, GPU, 128),
        (0.001, 50, LAPTOP, 64),
    ],
)
def test_input_follows_small_objects_within_limits(
    small_side: float, width: int, machine: Machine, side: int
) -> None:
    facts = replace(FACTS, small_side=small_side, width=width, height=width)
    assert rules.choose_input(facts, machine).fields == {"model.image_size": side}


def test_input_is_the_smallest_that_shows_the_objects() -> None:
    side = rules.INPUTS_CPU[1]
    facts = replace(FACTS, small_side=rules.SMALL_OBJECT / side)
    assert rules.choose_input(facts, LAPTOP).fields == {"model.image_size": side}


def test_elongated_images_keep_their_aspect_ratio() -> None:
    side = rules.INPUTS_CPU[1]
    facts = replace(FACTS, elongated=0.5, small_side=0.5)
    choice = rules.choose_input(replace(facts, small_side_padded=32 / side), LAPTOP)
    assert choice.fields == {"model.image_size": side, "data.fit": "letterbox"}


def test_tiles_are_named_only_where_images_are_larger_than_the_input() -> None:
    for width, tiles in ((4000, True), (rules.INPUTS_CPU[1], False)):
        facts = replace(FACTS, small_side=0.01, width=width, height=width)
        assert ("--tile" in rules.choose_input(facts, LAPTOP).why) == tiles


def test_anchors_are_set_only_if_others_fit_better() -> None:
    default, other = AnchorShapes(), AnchorShapes(12.0)
    assert rules.choose_anchors(default, None, "0 % missed").fields == {}
    fields = rules.choose_anchors(default, other, "1 % missed").fields
    assert fields["model.anchor_base"] == 12.0
    assert fields["model.anchor_ratios"] == list(other.ratios)


@pytest.mark.parametrize(
    ("images", "batch"), [(12, 8), (200, 8), (5_000, 16), (100_000, 16), (3, 3)]
)
def test_schedule_reaches_the_least_number_of_steps(images: int, batch: int) -> None:
    choice = rules.choose_schedule(replace(FACTS, images=images), batch, None)
    steps = choice.fields["train.epochs"] * images / batch
    assert steps >= rules.MIN_STEPS
    evaluations = choice.fields["train.epochs"] / choice.fields["evaluate.every"]
    assert rules.EVALUATIONS / 2 <= evaluations <= rules.EVALUATIONS * 2
    assert choice.fields["evaluate.every"] == choice.fields["train.checkpoint_every"]


def test_many_epochs_of_a_small_set_are_explained() -> None:
    choice = rules.choose_schedule(replace(FACTS, images=12), 8, None)
    assert choice.why == (
        "fewer than 1000 steps do not converge, and 12 images are 2 steps an epoch"
    )


def test_given_epochs_are_kept() -> None:
    choice = rules.choose_schedule(FACTS, 8, 3.0)
    assert choice.fields["train.epochs"] == 3.0
    assert choice.fields["evaluate.every"] == 1
    assert choice.why == "as given"


@pytest.mark.parametrize(
    ("cpus", "images", "workers", "cpus_each", "batch"),
    [(1, 200, 1, 1, 8), (2, 200, 2, 1, 8), (16, 200, 4, 4, 8), (2, 1, 1, 2, 1), (8, 5, 4, 2, 5)],
)
def test_workers_and_batch_follow_the_cpus(
    cpus: int, images: int, workers: int, cpus_each: int, batch: int
) -> None:
    fields = rules.choose_batch(replace(FACTS, images=images), Machine(cpus)).fields
    assert fields["ray.workers"] == workers
    assert fields["ray.cpus_per_worker"] == cpus_each
    assert fields["train.batch_size"] == batch
    assert workers * cpus_each <= cpus


def test_cores_and_batch_follow_the_given_workers() -> None:
    assert rules.choose_batch(FACTS, Machine(8), 2).fields["ray.cpus_per_worker"] == 4
    fields = rules.choose_batch(FACTS, replace(GPU, gpus=4), 2).fields
    assert (fields["ray.workers"], fields["train.batch_size"]) == (2, 2 * rules.BATCH_GPU)


def test_a_range_of_workers_counts_as_its_maximum() -> None:
    fields = rules.choose_batch(FACTS, Machine(8), (1, 4)).fields
    assert (fields["ray.workers"], fields["ray.cpus_per_worker"]) == ((1, 4), 2)
    assert rules.choose_batch(FACTS, GPU, (1, 4)).fields["train.batch_size"] == 4 * rules.BATCH_GPU


@pytest.mark.parametrize(
    ("images", "epochs", "workers"),
    [(120, None, 1), (3_000, None, 3), (100_000, None, 8), (120, 1_000.0, 7)],
)
def test_small_sets_do_not_need_every_gpu(images: int, epochs: float | None, workers: int) -> None:
    facts = replace(FACTS, images=images)
    choice = rules.choose_batch(facts, replace(GPU, cpus=64, gpus=8), None, epochs)
    assert choice.fields["ray.workers"] == workers
    assert ("need no more" in choice.why) == (workers < 8)


def test_each_gpu_has_a_worker() -> None:
    facts = replace(FACTS, images=10_000)
    fields = rules.choose_batch(facts, replace(GPU, gpus=2)).fields
    assert fields["ray.workers"] == 2
    assert fields["train.batch_size"] == 2 * rules.BATCH_GPU
    assert 1 <= fields["data.loader_workers"] <= rules.MAX_LOADERS
    # Workers for a whole cluster do not share the cores of this machine.
    assert rules.choose_batch(facts, GPU, 16).fields["data.loader_workers"] == rules.MAX_LOADERS


def test_freezing_is_written_only_if_something_is_frozen() -> None:
    assert rules.choose_freezing(0, FACTS).fields == {}
    assert rules.choose_freezing(2, FACTS).fields == {"model.freeze_stages": 2}


@pytest.mark.parametrize("init", ["imagenet", None])
def test_optimizer_follows_the_starting_weights(init: str | None) -> None:
    choice = rules.choose_optimizer(init)
    assert choice.fields == (rules.OPTIMIZER_PRETRAINED if init else rules.OPTIMIZER_RANDOM)
    assert choice.fields["train.optimizer"] in choice.text


def test_given_fields_replace_those_of_a_rule() -> None:
    choice = rules.Choice(
        "input", "320 px", "why", {"model.image_size": 320, "data.fit": "stretch"}
    )
    assert rules.override(choice, {"train.lr": 0.1}) is choice
    assert rules.override(choice, {"model.image_size": 320}) is choice
    changed = rules.override(choice, {"model.image_size": 512})
    assert changed.fields == {"model.image_size": 512, "data.fit": "stretch"}
    assert changed.why == "as given"


@pytest.mark.parametrize("images", [2, 10, 499, 500, 10**6])
def test_a_part_of_every_set_validates(images: int) -> None:
    assert 0.01 < rules.val_share(images) < 0.5
