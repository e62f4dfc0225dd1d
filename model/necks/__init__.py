"""Feature pyramids by name, in two variants.

A neck is built from the widths of the backbone's maps, its own width and the number of levels. It
turns the backbone's maps into one map per level, of the width in `widths`; strides start at 8 and
double. Compact necks are this project's; published ones follow the code of the paper's authors.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from .fssd import FSSDNeck
from .pafpn import PAFPNNeck, PublishedPAFPNNeck
from .published_rfb import PublishedRFBNeck
from .retinanet import RetinaNetNeck
from .rfb import RFBNeck


class NeckBuilder(Protocol):
    """Builds a neck, a module with the attribute `widths`."""

    def __call__(self, inputs: Sequence[int], channels: int, levels: int) -> Any:
        """Return the neck."""


NECKS: dict[str, NeckBuilder] = {
    "fssd": FSSDNeck,
    "retinanet": RetinaNetNeck,
    "rfb": RFBNeck,
    "pafpn": PAFPNNeck,
}
PUBLISHED_NECKS: dict[str, NeckBuilder] = {
    "fssd": partial(FSSDNeck, published=True),
    "retinanet": partial(RetinaNetNeck, published=True),
    "rfb": PublishedRFBNeck,
    "pafpn": PublishedPAFPNNeck,
}

__all__ = ["NECKS", "PUBLISHED_NECKS"]
