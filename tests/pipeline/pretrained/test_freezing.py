"""How much of a pretrained backbone is frozen where the configuration does not say."""

import pytest

from pipeline.config import Config
from pipeline.pretrained import explain_freezing, stages_to_freeze
from pipeline.pretrained.freezing import FEW_IMAGES

START = {"init": "imagenet", "backbone": "efficientnet_lite0"}


def config(**model: object) -> Config:
    return Config.from_dict({"model": model})


@pytest.mark.parametrize(
    ("model", "images", "expected"),
    [
        (START, FEW_IMAGES - 1, 2),
        (START, FEW_IMAGES, 0),
        ({**START, "backbone": "resnet18"}, 100, 2),
        ({"init": "runs/one", "backbone": "slim"}, 100, 1),
        ({"backbone": "efficientnet_lite0"}, 100, 0),
        ({**START, "norm": "group"}, 100, 0),
        ({**START, "freeze_stages": 0}, 100, 0),
        ({**START, "freeze_stages": 5}, 10 * FEW_IMAGES, 5),
    ],
)
def test_pretrained_stages_are_frozen_with_few_images(
    model: dict[str, object], images: int, expected: int
) -> None:
    given = config(**model)
    assert stages_to_freeze(given, images) == expected
    line = explain_freezing(given, images)
    assert (line is not None) == (bool(expected) and "freeze_stages" not in model)


def test_line_names_what_is_frozen_and_how_to_change_it() -> None:
    line = explain_freezing(config(**START), 123)
    assert line is not None
    for part in ("2 of the 5 stages of efficientnet_lite0", "(123)", "set model.freeze_stages (0:"):
        assert part in line
