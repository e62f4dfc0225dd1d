"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le, 2019) with ReLU6 and without squeeze-and-excite.

Padding and batch norms are those of TensorFlow, in which the published weights were trained.
"""

from .inverted_residual import InvertedResidualNet, Stage

STAGES = (
    Stage(expansion=1, kernel=3, width=16, blocks=1, stride=1),
    Stage(expansion=6, kernel=3, width=24, blocks=2, stride=2),
    Stage(expansion=6, kernel=5, width=40, blocks=2, stride=2),
    Stage(expansion=6, kernel=3, width=80, blocks=3, stride=2),
    Stage(expansion=6, kernel=5, width=112, blocks=3, stride=1),
    Stage(expansion=6, kernel=5, width=192, blocks=4, stride=2),
    Stage(expansion=6, kernel=3, width=320, blocks=1, stride=1),
)
_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_STEM = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}


class EfficientNetLite0(InvertedResidualNet):
    """EfficientNet-Lite0 without the last 1x1 convolution: 3.0 M parameters."""

    def __init__(self) -> None:
        super().__init__(STAGES, eps=1e-3, pads_end=True)

    def own_name(self, published: str) -> str:
        """Return the name of a published tensor, as in `_blocks.0._depthwise_conv.weight`."""
        module, _, tensor = published.rpartition(".")
        if module in _STEM:
            return f"{_STEM[module]}.{tensor}"
        block, _, layer = module.rpartition(".")
        if block.startswith("_blocks.") and layer in _LAYERS:
            return f"{block.removeprefix('_')}.{_LAYERS[layer]}.{tensor}"
        return published
