"""Anchors are set in a recipe; everything else in it stays, comments included."""

from pathlib import Path

import pytest

from model.anchor_shapes import AnchorShapes
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.reports.doctor.recipe import set_anchors, write_anchors
from pipeline.safe_yaml import load_yaml

SHAPES = AnchorShapes(14.5, (1.0, 1.25), (0.5, 2.0))
SET = "  anchor_base: 14.5\n  anchor_scales: [1, 1.25]\n  anchor_ratios: [0.5, 2]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "model:\n" + SET),
        ("# mine\ntrain:\n  lr: 0.1", "# mine\ntrain:\n  lr: 0.1\nmodel:\n" + SET),
        (
            "model:  # the detector\n  neck: rfb  # wide\n\n# data\ndata: {fit: stretch}\n",
            f"model:  # the detector\n{SET}  neck: rfb  # wide\n\n# data\ndata: {{fit: stretch}}\n",
        ),
        (
            "model:\n    # none\n    neck: rfb\n    anchor_base: 24  # the paper's\ntrain:\n",
            "model:\n    anchor_scales: [1, 1.25]\n    anchor_ratios: [0.5, 2]\n    # none\n"
            "    neck: rfb\n    anchor_base: 14.5  # the paper's\ntrain:\n",
        ),
        ("model:\n" + SET.replace("14.5", "3").replace("[1, ", "[1, 9, "), "model:\n" + SET),
        (
            "model: {neck: rfb}  # short\n",
            "model: {anchor_base: 14.5, anchor_scales: [1, 1.25], anchor_ratios: [0.5, 2], "
            "neck: rfb}  # short\n",
        ),
        ("model:\r\n  neck: rfb\r\n", ("model:\n" + SET + "  neck: rfb\n").replace("\n", "\r\n")),
        # The fields of another section of the same names stay.
        (
            "sweep:\n  space:\n    anchor_base: 3\nmodel:\n  neck: rfb\n",
            f"sweep:\n  space:\n    anchor_base: 3\nmodel:\n{SET}  neck: rfb\n",
        ),
    ],
)
def test_anchors_are_set_and_the_rest_stays(text: str, expected: str) -> None:
    assert set_anchors(text, SHAPES) == expected
    assert Config.from_dict({"model": load_yaml(expected)["model"]}).model.anchor_shapes == SHAPES


@pytest.mark.parametrize(
    "text",
    [
        "model:\n  anchor_scales:\n    - 1\n    - 2\n",
        "model: {anchor_base: 3}\n",
        "model: null\n",
        '"model": {neck: rfb}\n',
        "- model\n",
        "model: [\n",
    ],
)
def test_recipe_that_cannot_be_edited_stays_and_the_lines_are_named(
    tmp_path: Path, text: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=r"it is unchanged. Write below model: anchor_base: 14\.5;"):
        write_anchors(recipe, SHAPES)
    assert recipe.read_text() == text


def test_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    recipe, link = tmp_path / "r.yaml", tmp_path / "link.yaml"
    recipe.write_text("model:\n")
    recipe.chmod(0o640)
    link.symlink_to(recipe)
    write_anchors(link, SHAPES)
    assert link.is_symlink()
    assert recipe.read_text() == "model:\n" + SET
    assert recipe.stat().st_mode & 0o777 == 0o640
