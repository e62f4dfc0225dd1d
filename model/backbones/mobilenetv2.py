"""MobileNetV2 (Sandler et al., 2018), whose published weights torchvision has."""

from .inverted_residual import InvertedResidualNet, Stage

STAGES = (
    Stage(expansion=1, kernel=3, width=16, blocks=1, stride=1),
    Stage(expansion=6, kernel=3, width=24, blocks=2, stride=2),
    Stage(expansion=6, kernel=3, width=32, blocks=3, stride=2),
    Stage(expansion=6, kernel=3, width=64, blocks=4, stride=2),
    Stage(expansion=6, kernel=3, width=96, blocks=3, stride=1),
    Stage(expansion=6, kernel=3, width=160, blocks=3, stride=2),
    Stage(expansion=6, kernel=3, width=320, blocks=1, stride=1),
)
_LAYERS = {
    "0.0": "expand.conv",
    "0.1": "expand.norm",
    "1.0": "depthwise.conv",
    "1.1": "depthwise.norm",
    "2": "project.conv",
    "3": "project.norm",
}
# The first block does not widen, so its layers are counted from the depthwise one.
_FIRST_LAYERS = {
    "0.0": "depthwise.conv",
    "0.1": "depthwise.norm",
    "1": "project.conv",
    "2": "project.norm",
}


class MobileNetV2(InvertedResidualNet):
    """MobileNetV2 of width 1 without the last 1x1 convolution: 1.8 M parameters."""

    def __init__(self) -> None:
        super().__init__(STAGES)

    def own_name(self, published: str) -> str:
        """Return the name of a tensor of torchvision's, as in `features.2.conv.1.0.weight`."""
        container, _, rest = published.partition(".")
        position, _, rest = rest.partition(".")
        layer, _, tensor = rest.rpartition(".")
        if container != "features" or not position.isdigit():
            return published
        index = int(position) - 1
        if index < 0:
            own = {"0": "stem.conv", "1": "stem.norm"}.get(layer)
        elif index < len(self.blocks):
            layers = _LAYERS if index else _FIRST_LAYERS
            part = layers.get(layer.removeprefix("conv."))
            own = part and f"blocks.{index}.{part}"
        else:
            own = None
        return f"{own}.{tensor}" if own else published
