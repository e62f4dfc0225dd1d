"""ResNet and VGG have torchvision's names, shapes and strides, and load its checkpoints."""

import math

import pytest
import torch

from model.backbones import BACKBONES, build_backbone
from tests.published import PARAMETERS, published_shapes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_listed_shapes_have_the_published_number_of_parameters(name: str) -> None:
    shapes = published_shapes(name)
    learned = [shape for key, shape in shapes.items() if not key.endswith(STATISTICS)]
    assert sum(math.prod(shape) for shape in learned) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_names_and_shapes_equal_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        here = {k: tuple(v.shape) for k, v in build_backbone(name).state_dict().items()}
    there = published_shapes(name)
    assert here == {k: v for k, v in there.items() if not k.startswith(("fc.", "classifier."))}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_maps_have_the_declared_strides_and_widths(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
        maps = backbone(torch.empty(1, 3, 192, 192))
    assert len(maps) == (2 if name == "vgg16" else 3)
    for level, (features, width) in enumerate(zip(maps, backbone.channels, strict=True)):
        assert features.shape == (1, width, 24 >> level, 24 >> level)


def test_bottleneck_has_its_stride_in_the_middle() -> None:
    """As in ResNet v1.5, the published ResNet-50."""
    with torch.device("meta"):
        block = build_backbone("resnet50").layer3[0]  # type: ignore[index,union-attr]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_unknown_backbone_lists_the_known_ones() -> None:
    known = "resnet18, resnet34, resnet50, slim, vgg16, or timm:NAME"
    with pytest.raises(ValueError, match=f"'vgg' does not exist; choose from: {known}"):
        build_backbone("vgg")
