"""Networks of timm if it is installed, else one clear error."""

import sys
from pathlib import Path

import pytest
import torch

from model import build_detector


def timm_is_installed() -> bool:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


@pytest.mark.parametrize(
    "failure",
    [
        "raise ImportError('No module named torchvision')",
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "raise OSError('libcudart.so.13: cannot open shared object file')",
    ],
)
def test_missing_timm_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    (tmp_path / "timm.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ValueError, match=r"'timm:resnet18' needs timm.*install timm") as caught:
        build_detector("timm:resnet18")
    assert failure.split("'")[1] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not timm_is_installed(), reason="timm cannot be imported")
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_detector_with_a_timm_backbone(name: str) -> None:
    import timm

    detector = build_detector(f"timm:{name}", "fssd", 3, 128)
    assert detector(torch.zeros(2, 3, 128, 128)).logits.shape == (2, len(detector.anchors), 3)
    published = timm.create_model(name, pretrained=False).state_dict()
    here = detector.backbone.state_dict()
    missing = set(here) - {detector.backbone.own_name(key) for key in published}
    assert not missing


@pytest.mark.skipif(not timm_is_installed(), reason="timm cannot be imported")
def test_unknown_and_unsuitable_timm_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="timm has no network 'resnet1'; nearest: resnet18"):
        build_detector("timm:resnet1")
    with pytest.raises(ValueError, match="none at stride 8"):
        build_detector("timm:vit_tiny_patch16_224")
