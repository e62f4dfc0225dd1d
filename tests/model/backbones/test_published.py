"""Backbones have the names, shapes and strides of published checkpoints, and load them."""

import math

import pytest
import torch

from model.backbones import BACKBONES, build_backbone
from tests.published import CLASSIFIERS, PARAMETERS, published_shapes

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_listed_shapes_have_the_published_number_of_parameters(name: str) -> None:
    shapes = published_shapes(name)
    learned = [shape for key, shape in shapes.items() if not key.endswith(STATISTICS)]
    assert sum(math.prod(shape) for shape in learned) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_names_and_shapes_equal_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    here = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
    behind = CLASSIFIERS.get(name, ("fc.",))
    there = {k: v for k, v in published_shapes(name).items() if not k.startswith(behind)}
    assert here == {backbone.own_name(k): v for k, v in there.items()}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_names_behind_the_backbone_are_in_no_module_of_it(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    behind = CLASSIFIERS.get(name, ("fc.",))
    own = [backbone.own_name(k) for k in published_shapes(name) if k.startswith(behind)]
    assert own
    assert not {key.split(".")[0] for key in own} & {n for n, _ in backbone.named_children()}


@pytest.mark.parametrize("side", [8, 32])
def test_padding_at_the_end_sees_the_pixels_that_tensorflow_sees(side: int) -> None:
    """Of an even side, a 3x3 of stride 2 sees pixels 2 i to 2 i + 2, and one pad at the end."""
    stem = build_backbone("efficientnet_lite0").stem
    with torch.no_grad():
        stem.conv.weight.zero_()[:, :, 0, 0] = 1.0  # type: ignore[union-attr]
        image = torch.zeros(1, 3, side, side)
        image[:, :, 2, 4] = 1.0
        response = stem.conv(stem.pad(image))[0, 0]  # type: ignore[operator]
    assert response.shape == (side // 2, side // 2)
    assert response.nonzero().tolist() == [[1, 2]]


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
    known = "efficientnet_lite0, mobilenetv2, resnet18, resnet34, resnet50, slim, vgg16, or timm"
    with pytest.raises(ValueError, match=f"'vgg' does not exist; choose from: {known}"):
        build_backbone("vgg")
