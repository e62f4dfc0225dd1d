"""Names and shapes of the tensors in torchvision's published checkpoints, written by hand."""

import torch

Shapes = dict[str, tuple[int, ...]]

# Trainable parameters as torchvision's documentation states them, classifier included.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg16": 138_365_992,
}
_RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def published_shapes(name: str) -> Shapes:
    """Return the shape of every tensor of a checkpoint; ``vgg16`` is the one with batch norm."""
    return _vgg16() if name == "vgg16" else _resnet(_RESNETS[name], deep=name == "resnet50")


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
