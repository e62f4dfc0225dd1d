"""ResNet and VGG have torchvision's names, shapes and strides, so that its checkpoints fit."""

import math

import pytest
import torch

from model.backbones import BACKBONES, build_backbone
from tests.published import PARAMETERS, published_shapes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_list_of_shapes_has_the_published_number_of_parameters(name: str) -> None:
    shapes = published_shapes(name)
    learned = [shape for key, shape in shapes.items() if not key.endswith(STATISTICS)]
    assert sum(math.prod(shape) for shape in learned) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        here = {k: tuple(v.shape) for k, v in build_backbone(name).state_dict().items()}
    there = published_shapes(name)
    assert here == {k: v for k, v in there.items() if not k.startswith(("fc.", "classifier."))}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_maps_are_where_and_as_wide_as_the_backbone_says(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
        maps = backbone(torch.empty(1, 3, 192, 192))
    assert len(maps) == (2 if name == "vgg16" else 3)
    for level, (features, width) in enumerate(zip(maps, backbone.channels, strict=True)):
        assert features.shape == (1, width, 24 >> level, 24 >> level)


def test_deep_blocks_take_their_stride_in_the_middle() -> None:
    """ResNet v1.5: the published ResNet-50 is this one."""
    with torch.device("meta"):
        block = build_backbone("resnet50").layer3[0]  # type: ignore[index,union-attr]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_unknown_names_list_what_exists() -> None:
    known = "resnet18, resnet34, resnet50, slim, vgg16, or timm:NAME"
    with pytest.raises(ValueError, match=f"'vgg' does not exist; choose from: {known}"):
        build_backbone("vgg")
