"""Feature pyramids by name.

A neck is built from the widths of the backbone's maps, its own width and the number of levels. It
turns the backbone's maps into one map of its width per level; strides start at 8 and double.
"""

from collections.abc import Callable, Sequence

from torch import nn

from .fssd import FSSDNeck
from .pafpn import PAFPNNeck
from .retinanet import RetinaNetNeck
from .rfb import RFBNeck

NECKS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    "fssd": FSSDNeck,
    "retinanet": RetinaNetNeck,
    "rfb": RFBNeck,
    "pafpn": PAFPNNeck,
}

__all__ = ["NECKS"]
