"""Parameters and FLOPs: counted correctly, printed by the job, and as documented."""

from pathlib import Path

import pytest
import torch
from torch import nn

from jobs import describe
from model import BACKBONES, NECKS, build_detector
from pipeline.errors import UserError
from pipeline.flops import markdown_table, model_cost

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "detectors.md"


def multiply_adds(detector: nn.Module, image: torch.Tensor) -> int:
    """Count two operations per weight of a convolution and output position."""
    total = 0

    def count(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * layer.weight.numel() * output.shape[-2] * output.shape[-1]

    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    detector.eval()(image)
    return total


def test_cost_is_the_sum_over_the_layers() -> None:
    found = model_cost("slim", "pafpn", 128, 3)
    detector = build_detector("slim", "pafpn", 3, 128)
    assert found.parameters == sum(p.numel() for p in detector.parameters())
    parts = (found.backbone_parameters, found.neck_parameters, found.heads_parameters)
    assert sum(parts) == found.parameters
    assert found.flops == multiply_adds(detector, torch.zeros(1, 3, 128, 128))


def test_recipe_describes_only_its_detector(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = DOCUMENT.parents[1] / "configs" / "shapes.yaml"
    result = describe.main(["--config", str(recipe), "--classes", "3"])
    (row,) = result["detectors"]
    assert (row["backbone"], row["neck"], row["image_size"]) == ("slim", "retinanet", 128)
    assert row == model_cost("slim", "retinanet", 128, 3)._asdict()
    assert "| slim | retinanet | 128 |" in capsys.readouterr().out


def test_single_field_describes_one_detector() -> None:
    assert len(describe.main(["--model.neck", "fssd"])["detectors"]) == 1


@pytest.mark.parametrize("classes", ["0", "-1", "many"])
def test_invalid_number_of_classes_is_reported(classes: str) -> None:
    with pytest.raises(UserError, match="--classes: expected a whole number from 1"):
        describe.main([f"--classes={classes}"])


def documented() -> list[str]:
    return [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]


def test_documentation_has_every_detector() -> None:
    for backbone in BACKBONES:
        for neck in NECKS:
            for size in describe.SIZES:
                assert any(
                    line.startswith(f"| {backbone} | {neck} | {size} |") for line in documented()
                )


@pytest.mark.parametrize(
    "kind", [("slim", "retinanet", 320), ("vgg16", "rfb", 512), ("resnet50", "pafpn", 320)]
)
def test_documentation_has_the_current_figures(kind: tuple[str, str, int]) -> None:
    assert markdown_table([model_cost(*kind, num_classes=80)])[-1] in documented()


@pytest.mark.slow
def test_documentation_is_the_output_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    describe.main([])
    assert capsys.readouterr().out.strip() in DOCUMENT.read_text()
