"""Weights of timm's own, where timm is installed: from the cache, folded, and what is missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model import build_detector
from model.detector import MEAN, STD
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained import start_from
from pipeline.pretrained.download import weights_cache
from pipeline.pretrained.published import read_published

NAME = "efficientnet_lite0"  # of timm: expects the usual pixels
OTHER_PIXELS = "tf_efficientnet_lite0"  # expects (RGB - 127.5) / 127.5


@pytest.fixture(scope="session")
def timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError, OSError):
        pytest.skip("timm cannot be imported")
    return timm


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def stored(timm: Any, name: str) -> Any:
    """Return a network of timm with random weights, which the cache has as a file."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    weights_cache().mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), weights_cache() / f"timm-{name}.safetensors")
    return network


@pytest.mark.parametrize("name", [NAME, OTHER_PIXELS, "convnext_atto"])
def test_network_computes_the_same_on_the_pixels_of_the_detector(timm: Any, name: str) -> None:
    published = stored(timm, name)
    config = Config.from_dict({"model": {"backbone": f"timm:{name}", "init": "imagenet"}})
    detector = build_detector(**config.model.network(), num_classes=1).eval()
    report = start_from(config, detector, ["a"])
    assert not [key for key in report.missing if key.startswith("backbone.")]
    # Borders are padded with another value, so compare pixels of the mean's colour around noise.
    cfg = published.pretrained_cfg
    pixels = torch.full((1, 3, 128, 128), 0.0) + torch.tensor(MEAN).view(1, 3, 1, 1)
    pixels[..., 40:88, 40:88] = torch.randint(0, 256, (3, 48, 48)).float()
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) * 255 for key in ("mean", "std"))
    features = timm.create_model(name, pretrained=False, features_only=True).eval()
    features.load_state_dict(
        {
            detector.backbone.own_name(key).removeprefix("body."): value
            for key, value in published.state_dict().items()
        },
        strict=False,
    )
    with torch.no_grad():
        first = features((pixels - mean) / std)[1][..., 8:24, 8:24]
        own_mean, own_std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        found = detector.backbone.body((pixels - own_mean) / own_std)[1][..., 8:24, 8:24]  # type: ignore[operator]
    torch.testing.assert_close(found, first, rtol=1e-3, atol=1e-4)


def test_without_a_connection_the_error_names_the_file_and_its_place(timm: Any) -> None:
    with pytest.raises(OutageError, match="the weights of timm:resnet18 cannot be loaded") as e:
        read_published("imagenet", "timm:resnet18")
    assert "put model.safetensors of https://huggingface.co/timm/resnet18" in str(e.value)
    assert str(e.value).endswith(f"there as {weights_cache() / 'timm-resnet18.safetensors'}")
    assert "\n" not in str(e.value)


def test_network_without_published_weights_is_one_line(timm: Any) -> None:
    with_weights = {name.split(".")[0] for name in timm.list_models(pretrained=True)}
    name = next(name for name in timm.list_models() if name not in with_weights)
    with pytest.raises(UserError, match=f"timm publishes no weights for {name}; timm.list_models"):
        read_published("imagenet", f"timm:{name}")
