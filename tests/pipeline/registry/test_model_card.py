"""Test what the model card says about data, figures and classes."""

from dataclasses import replace

import pytest

from pipeline.config import Config, DetectorSpec
from pipeline.metrics import match_images
from pipeline.metrics.summary import summarize
from pipeline.registry import BundleContent
from pipeline.registry.model_card import DataSummary, model_card
from tests.pipeline.metrics.scenes import random_scenes

CLASSES = ["cat", "dog", "owl"]
ORIGIN = {"run_id": "abc", "git.revision": "0" * 40, "data.train.fingerprint": "f" * 64}
SUMMARY = summarize(match_images(random_scenes(0, 40, 2)), CLASSES, "coco")  # without an owl
CONTENT = BundleContent(
    name="pets",
    weights={},
    spec=DetectorSpec(backbone="slim", neck="retinanet", num_classes=3, image_size=64),
    classes=CLASSES,
    config=Config(),
    metrics={"val/ap": 0.25, "test/ap": SUMMARY.intervals["ap"].value},
    data=[
        DataSummary("train", "zoo", "a" * 64, 900, 3000, []),
        DataSummary("test", "zoo", "b" * 64, 40, 120, ["owl"]),
    ],
    summary=SUMMARY,
)


def test_figures_have_intervals_and_classes_their_objects() -> None:
    card = model_card(CONTENT, ORIGIN)
    ap, cat = SUMMARY.intervals["ap"], SUMMARY.classes["cat"]
    assert f"| test/ap | {ap.value:.4f} | {ap.low:.4f} to {ap.high:.4f} |" in card
    assert "| val/ap | 0.2500 | – |" in card
    assert "`val` selected these weights" in card
    assert cat.ap is not None
    row = f"| 0 | cat | {cat.objects} | {cat.ap.value:.4f} | {cat.ap.low:.4f} to {cat.ap.high:.4f}"
    assert row in card
    assert "| 2 | owl | 0 | – | – |" in card


def test_data_and_origin_are_named() -> None:
    card = model_card(CONTENT, ORIGIN)
    assert f"| train | zoo | 900 | 3000 | {'a' * 16} |" in card
    assert "`test` has no objects of owl: its figures do not cover these classes." in card
    for key, value in ORIGIN.items():
        assert f"- {key}: {value}" in card
    for heading in ("Intended use and limits", "Licence", "Use", "Evaluation"):
        assert f"## {heading}\n" in card


@pytest.mark.parametrize(
    ("protocol", "text"),
    [("coco", "IoU 0.50 to 0.95"), ("voc07", "11 points"), ("voc", "area under the curve")],
)
def test_protocol_is_named(protocol: str, text: str) -> None:
    config = Config().replace({"evaluate.protocol": protocol})
    assert text in model_card(replace(CONTENT, config=config), ORIGIN)


def test_what_is_not_known_is_not_claimed() -> None:
    bare = replace(CONTENT, data=(), summary=None, metrics={})
    card = model_card(bare, {})
    assert "Not evaluated." in card and "- unknown" in card and "0. cat" in card
    filled = card.replace('{"score_threshold"', "").replace('{"image"', "")
    assert "optimistic" not in card and "{" not in filled
    assert "`python -m jobs.evaluate` gives them intervals" in card
    assert "`calibrated`" not in card
    assert "except with the parameter `calibrated`" in model_card(
        replace(CONTENT, temperature=1.5), {}
    )


def test_long_list_of_classes_is_at_the_end() -> None:
    card = model_card(CONTENT, ORIGIN)
    assert card.index("## Classes") > max(
        card.index(f"## {name}") for name in ("Data", "Licence", "Origin", "Use")
    )
