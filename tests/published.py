"""Names and shapes of the tensors in published checkpoints, written by hand.

They are torchvision's, except for ``efficientnet_lite0``.
"""

import torch

Shapes = dict[str, tuple[int, ...]]

# Trainable parameters as torchvision's documentation states them, classifier included.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg16": 138_365_992,
    "mobilenetv2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
}
# What follows the backbone in each checkpoint.
CLASSIFIERS = {
    "vgg16": ("classifier.",),
    "mobilenetv2": ("features.18.", "classifier."),
    "efficientnet_lite0": ("_conv_head.", "_bn1.", "_fc."),
}
# Per block: width before, width behind, widening, side of the depthwise kernel.
_MOBILENETV2 = (
    *((32, 16, 1, 3), (16, 24, 6, 3), (24, 24, 6, 3), (24, 32, 6, 3), (32, 32, 6, 3)),
    *((32, 32, 6, 3), (32, 64, 6, 3), (64, 64, 6, 3), (64, 64, 6, 3), (64, 64, 6, 3)),
    *((64, 96, 6, 3), (96, 96, 6, 3), (96, 96, 6, 3), (96, 160, 6, 3), (160, 160, 6, 3)),
    *((160, 160, 6, 3), (160, 320, 6, 3)),
)
_LITE0 = (
    *((32, 16, 1, 3), (16, 24, 6, 3), (24, 24, 6, 3), (24, 40, 6, 5), (40, 40, 6, 5)),
    *((40, 80, 6, 3), (80, 80, 6, 3), (80, 80, 6, 3), (80, 112, 6, 5), (112, 112, 6, 5)),
    *((112, 112, 6, 5), (112, 192, 6, 5), (192, 192, 6, 5), (192, 192, 6, 5)),
    *((192, 192, 6, 5), (192, 320, 6, 3)),
)
_RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def published_shapes(name: str) -> Shapes:
    """Return the shape of every tensor of a checkpoint; ``vgg16`` is the one with batch norm."""
    if name in _RESNETS:
        return _resnet(_RESNETS[name], deep=name == "resnet50")
    return {"vgg16": _vgg16, "mobilenetv2": _mobilenetv2, "efficientnet_lite0": _lite0}[name]()


def published_state(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random values for every tensor of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.zeros((), dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.rand(shape, generator=generator)
        for key, shape in published_shapes(name).items()
    }


def _norm(name: str, width: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{name}.num_batches_tracked": ()}


def _resnet(blocks: tuple[int, ...], deep: bool) -> Shapes:
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = width * 4 if deep else width
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            sides = (1, 3, 1) if deep else (3, 3)
            widths = (inputs, width, width, outputs) if deep else (inputs, width, width)
            for i, side in enumerate(sides):
                shapes[f"{name}.conv{i + 1}.weight"] = (widths[i + 1], widths[i], side, side)
                shapes |= _norm(f"{name}.bn{i + 1}", widths[i + 1])
            if block == 0 and inputs != outputs:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return {**shapes, "fc.weight": (1000, inputs), "fc.bias": (1000,)}


def _vgg16() -> Shapes:
    # Index of each convolution in `features`. Its norm follows, and a pooling ends each block.
    indices = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    shapes: Shapes = {}
    for index, inputs, outputs in zip(indices, widths[:-1], widths[1:], strict=True):
        shapes[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"features.{index}.bias"] = (outputs,)
        shapes |= _norm(f"features.{index + 1}", outputs)
    for index, outputs, inputs in ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096)):
        shapes[f"classifier.{index}.weight"] = (outputs, inputs)
        shapes[f"classifier.{index}.bias"] = (outputs,)
    return shapes


def _mobilenetv2() -> Shapes:
    shapes: Shapes = {"features.0.0.weight": (32, 3, 3, 3), **_norm("features.0.1", 32)}
    for index, (inputs, outputs, widening, side) in enumerate(_MOBILENETV2, start=1):
        name, hidden, layer = f"features.{index}.conv", inputs * widening, 0
        if widening > 1:
            shapes[f"{name}.0.0.weight"] = (hidden, inputs, 1, 1)
            shapes |= _norm(f"{name}.0.1", hidden)
            layer = 1
        shapes[f"{name}.{layer}.0.weight"] = (hidden, 1, side, side)
        shapes |= _norm(f"{name}.{layer}.1", hidden)
        shapes[f"{name}.{layer + 1}.weight"] = (outputs, hidden, 1, 1)
        shapes |= _norm(f"{name}.{layer + 2}", outputs)
    shapes |= {"features.18.0.weight": (1280, 320, 1, 1), **_norm("features.18.1", 1280)}
    return {**shapes, "classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


def _lite0() -> Shapes:
    shapes: Shapes = {"_conv_stem.weight": (32, 3, 3, 3), **_norm("_bn0", 32)}
    for index, (inputs, outputs, widening, side) in enumerate(_LITE0):
        name, hidden = f"_blocks.{index}", inputs * widening
        if widening > 1:
            shapes[f"{name}._expand_conv.weight"] = (hidden, inputs, 1, 1)
            shapes |= _norm(f"{name}._bn0", hidden)
        shapes[f"{name}._depthwise_conv.weight"] = (hidden, 1, side, side)
        shapes |= _norm(f"{name}._bn1", hidden)
        shapes[f"{name}._project_conv.weight"] = (outputs, hidden, 1, 1)
        shapes |= _norm(f"{name}._bn2", outputs)
    shapes |= {"_conv_head.weight": (1280, 320, 1, 1), **_norm("_bn1", 1280)}
    return {**shapes, "_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
