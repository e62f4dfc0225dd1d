"""The recipes of the paper's table are complete, match the publication and can train."""

from pathlib import Path

import pytest
import torch

from pipeline.config import Config, read_recipe
from pipeline.data import Batch
from pipeline.distributed.world import World
from pipeline.training.trainer.trainer import Trainer

PAPER_ANCHORS = {
    "anchor_base": 24.0,
    "anchor_scales": (1.0, 2.0**0.5),
    "anchor_ratios": (1.0, 2.0, 0.5),
    "anchor_clamp": True,
}
FOLDER = Path(__file__).resolve().parents[1] / "configs" / "paper"

# (data, neck, size) -> mAP, AP50, AP75 of the baseline and with Mutual Guidance.
PUBLISHED = {
    ("voc", "fssd", 320): ((54.1, 80.1, 58.3), (56.2, 80.4, 61.4)),
    ("voc", "retinanet", 320): ((55.2, 80.2, 59.6), (57.7, 81.1, 62.9)),
    ("voc", "rfb", 320): ((55.6, 80.9, 59.6), (57.9, 81.5, 62.6)),
    ("voc", "pafpn", 320): ((58.1, 81.7, 63.3), (59.5, 82.3, 64.2)),
    ("coco", "fssd", 320): ((31.1, 48.9, 32.7), (32.0, 49.3, 33.9)),
    ("coco", "retinanet", 320): ((32.3, 50.3, 34.0), (33.6, 50.8, 35.7)),
    ("coco", "rfb", 320): ((33.4, 51.6, 35.1), (34.6, 52.0, 36.8)),
    ("coco", "pafpn", 320): ((33.9, 51.9, 35.7), (35.3, 52.4, 37.3)),
    ("coco", "retinanet", 512): ((37.1, 56.5, 39.5), (38.2, 56.6, 41.0)),
}
ROWS = [
    (data, neck, size, assigner, figures)
    for (data, neck, size), both in PUBLISHED.items()
    for assigner, figures in zip(("max_iou", "mutual_guidance"), both, strict=True)
]


SOFT_ROWS = [
    (data, neck) for data in ("voc", "coco") for neck in ("fssd", "retinanet", "rfb", "pafpn")
]


def soft_recipe(data: str, neck: str) -> Path:
    """Return the path of a recipe of the soft version."""
    return FOLDER / f"{data}-{neck}-640-mutual-guidance-soft.yaml"


def recipe(data: str, neck: str, size: int, assigner: str) -> Path:
    """Return the path of a recipe."""
    return FOLDER / f"{data}-{neck}-{size}-{assigner.replace('_', '-')}.yaml"


def test_recipes_correspond_to_published_rows_and_the_soft_version() -> None:
    expected = {recipe(*row[:4]) for row in ROWS} | {soft_recipe(*row) for row in SOFT_ROWS}
    assert expected == set(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize(("data", "neck"), SOFT_ROWS)
def test_recipe_of_the_soft_version_is_that_of_its_authors(data: str, neck: str) -> None:
    path = soft_recipe(data, neck)
    config = Config.from_dict(read_recipe(path))
    assert config.model.network() == {
        **PAPER_ANCHORS,
        "backbone": "resnet18",
        "neck": neck,
        "neck_variant": "published",
        "norm": "batch",
        "image_size": 640,
        "strides": (16, 32, 64),
        "head": "decoupled",
        "activation": "silu",
    }
    # Base 48 px on the first stride.
    assert config.model.anchor_shapes.sizes(16, 640)[0] == (48.0, 48.0)
    train = config.train
    assert (train.lr, train.momentum, train.nesterov, train.final_lr) == (0.01, 0.9, True, 0.05)
    assert (train.ema_decay, train.ema_ramp, train.weight_decay) == (0.9998, 2000.0, 5e-4)
    assert config.assign.name == "mutual_guidance_soft"
    unset = Config.from_dict({"assign": {"name": "mutual_guidance_soft"}})
    usual = {"alpha": 0.75, "gamma": 2.0}
    assert config.recorded()["loss"] == {**unset.recorded()["loss"], **usual}
    assert "no result of this network was published" in path.read_text()


@pytest.mark.parametrize(("data", "neck", "size", "assigner", "figures"), ROWS)
def test_recipe_matches_publication_and_states_its_figures(
    data: str, neck: str, size: int, assigner: str, figures: tuple[float, ...]
) -> None:
    path = recipe(data, neck, size, assigner)
    config = Config.from_dict(read_recipe(path))
    network = {"backbone": "vgg16", "neck": neck, "image_size": size, "norm": "batch"}
    plain = {"neck_variant": "published", "strides": (), "head": "plain", "activation": "relu"}
    assert config.model.network() == {**network, **PAPER_ANCHORS, **plain}
    assert config.assign.name == assigner
    train = config.train
    assert (train.lr, train.momentum, train.weight_decay) == (0.01, 0.9, 5e-4)
    assert (train.batch_size, train.warmup_steps) == (32, 500)
    assert train.epochs == (250 if data == "voc" else 140)
    assert (train.clip_norm, train.precision, train.ema_decay) == (0.0, "fp32", 0.0)
    evaluate = config.evaluate
    assert (evaluate.score_threshold, evaluate.max_detections) == (0.005, 300)
    assert (evaluate.nms_iou, evaluate.class_agnostic) == (0.5, False)
    assert evaluate.protocol == ("voc07" if data == "voc" else "coco")
    assert config.loss.model_dump(include={"alpha", "gamma"}) == {"alpha": 0.25, "gamma": 1.0}
    augmentation = {
        "augment_variant": "published",
        "crop": 1.0,
        "zoom_out": 0.6,
        "zoom_out_max": 4.0,
        "photometric": 1.0,
        "flip": 0.5,
        "mosaic": 0.0,
        "mixup": 0.0,
        "fit": "stretch",
        "sizes": (),
        "flip_vertical": 0.0,
    }
    assert config.data.model_dump(include=set(augmentation)) == augmentation
    assert config.model.init is not None and "vgg16_bn" in config.model.init
    assert "mAP {}, AP50 {}, AP75 {}".format(*figures) in path.read_text()


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: "-".join(map(str, row)))
def test_recipes_of_a_row_differ_only_in_assigner(row: tuple[str, str, int]) -> None:
    trees = [read_recipe(recipe(*row, assigner)) for assigner in ("max_iou", "mutual_guidance")]
    assert trees[0].pop("assign") != trees[1].pop("assign")
    assert trees[0] == trees[1]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "neck", "size", "assigner", "figures"), ROWS)
def test_recipe_trains_one_step(
    data: str, neck: str, size: int, assigner: str, figures: tuple[float, ...]
) -> None:
    tree = read_recipe(recipe(data, neck, size, assigner))
    config = Config.from_dict(tree).replace({"model.init": None, "train.batch_size": 1})
    trainer = Trainer(config, World(), num_classes=20 if data == "voc" else 80, total_steps=1000)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[[40.0, 60.0, 200.0, 180.0]]])
    nothing, readable = torch.zeros(1, 0, 4), torch.ones(1, dtype=torch.bool)
    before = trainer.detector.backbone.features[0].weight.detach().clone()
    parts = trainer.step(Batch(image, boxes, torch.tensor([[3]]), nothing, readable, ["0"], []))
    assert parts["loss"].isfinite() and parts["positives_cls"] > 0 and parts["positives_loc"] > 0
    assert not torch.equal(before, trainer.detector.backbone.features[0].weight)
