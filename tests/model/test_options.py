"""Options are declared once, and reading them does not import torch."""

import subprocess
import sys

import pytest

from model import BACKBONES, NECKS
from model.assign import ASSIGNERS, build_assigner
from model.loss import DetectionLoss
from model.losses import LOCALIZATION_LOSSES, OVERLAP_LOSSES
from model.names import BACKBONE_NAMES, NECK_NAMES
from model.options import (
    ASSIGNER_OPTIONS,
    LOCALIZATION_LOSS_NAMES,
    OVERLAP_LOSS_NAMES,
    AssignerOptions,
    LossOptions,
    assigner_options,
)
from pipeline.config import AssignConfig, LossConfig
from tests.model.assign.random_batches import build


def test_configuration_imports_without_torch() -> None:
    code = (
        "import sys, model, model.options, pipeline.config\n"
        "pipeline.config.Config.from_dict({'model': {'backbone': 'vgg16', 'neck': 'rfb'}})\n"
        "assert 'torch' not in sys.modules\n"
        "from model import Detector, build_detector, NECKS\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    import model

    with pytest.raises(AttributeError, match="'model' has no attribute 'Detektor'"):
        model.Detektor  # noqa: B018


def test_names_are_those_of_the_implementations() -> None:
    assert tuple(BACKBONES) == BACKBONE_NAMES
    assert tuple(NECKS) == NECK_NAMES
    assert tuple(ASSIGNERS) == tuple(ASSIGNER_OPTIONS)
    assert tuple(LOCALIZATION_LOSSES) == LOCALIZATION_LOSS_NAMES
    assert tuple(OVERLAP_LOSSES) == OVERLAP_LOSS_NAMES


def test_every_option_has_a_field_in_the_configuration() -> None:
    options = {option for name in ASSIGNERS for option in assigner_options(name)}
    assert options == set(AssignerOptions.__annotations__)
    assert options == set(AssignConfig.model_fields) - {"name"}
    assert {*LossOptions.declared(), "class_weights"} == set(LossConfig.model_fields)


def test_assigners_share_the_bounds_of_a_shared_option() -> None:
    """The flat section has one field for it."""
    bounds: dict[str, dict[str, float]] = {}
    for options in ASSIGNER_OPTIONS.values():
        for name, option in options.declared().items():
            assert bounds.setdefault(name, dict(option.bounds)) == option.bounds


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
def test_default_configuration_builds_the_default_assigner(name: str) -> None:
    assigner = build(name)
    for option, declared in ASSIGNER_OPTIONS[name].declared().items():
        assert getattr(assigner, option) == declared.default
        configured = AssignConfig.model_fields[option].default
        assert configured in (declared.default, None)


def test_default_configuration_builds_the_default_loss() -> None:
    one = DetectionLoss(build_assigner("max_iou"))
    other = DetectionLoss(build_assigner("max_iou"), **LossConfig().options("mutual_guidance"))
    assert vars(one) == vars(other) | {
        key: value for key, value in vars(one).items() if key.startswith("_")
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sigma": 1.0}, "sigma is 1.0; it must be above 1"),
        ({"sigma": float("nan")}, "sigma is nan; it must be above 1"),
        ({"pos_threshold": 1.5}, "pos_threshold is 1.5; it must be below 1"),
        ({"ignore_threshold": 0.6}, "ignore_threshold 0.6 is above pos_threshold 0.5"),
    ],
)
def test_assigner_option_out_of_bounds_is_refused(options: AssignerOptions, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build_assigner("mutual_guidance", **options)


def test_loss_option_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha is 2; it must be at most 1"):
        DetectionLoss(build_assigner("max_iou"), alpha=2)
    with pytest.raises(ValueError, match="poly is -1; it must be at least 0"):
        DetectionLoss(build_assigner("max_iou"), poly=-1)
