"""A version with other settings of post-processing: its content, origin and predictions."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
from mlflow import pyfunc

from pipeline.config import DetectorSpec
from pipeline.predict import load
from pipeline.registry import BundleContent, fetch_model, load_detector, register
from pipeline.registry.predict import Detection
from pipeline.registry.register import find_registered
from pipeline.registry.tuned_version import TunedSettings, register_tuned
from pipeline.tracking import connect
from tests.pipeline.registry.conftest import Registered
from tests.pipeline.registry.test_bundle import SIZES, picture

TUNED = TunedSettings(
    nms_iou=0.65,
    class_agnostic=True,
    max_detections=12,
    score_threshold=0.1,
    score_thresholds={"circle": 0.5},
    changed=True,
    metrics={"ap": 0.625},
    gain="ap +0.1250 [+0.0100, +0.2000]",
    data="photos",
    content_hash="f" * 64,
    images=6,
)


@pytest.fixture(scope="module")
def content(registered: Registered) -> BundleContent:
    detector = registered.detectors[0]
    return BundleContent(
        name="tuned",
        weights=detector.state_dict(),
        spec=DetectorSpec(**detector.spec),
        classes=registered.classes[0],
        config=registered.config,
        metrics={"test/ap": 0.5},
        temperature=2.0,
    )


def test_settings_make_a_version_of_their_own(
    registered: Registered, content: BundleContent
) -> None:
    uri = registered.uri
    former = register(uri, registered.run_ids[0], content)
    version = register_tuned(uri, former.model_uri, "tuned", TUNED)
    assert version.version == former.version + 1
    # The same again makes none, and neither is taken for the other.
    assert register_tuned(uri, former.model_uri, "tuned", TUNED) == version
    assert register(uri, registered.run_ids[0], content) == former
    assert find_registered(uri, content) == former
    other = replace(TUNED, score_thresholds={"circle": 0.25})
    assert register_tuned(uri, version.model_uri, "tuned", other).version == version.version + 1
    tags = connect(uri).get_model_version("tuned", str(version.version)).tags
    expected = {
        "run_id": registered.run_ids[0],
        "settings.model": former.model_uri,
        "settings.data": "photos, 6 images",
        "settings.data.fingerprint": "f" * 64,
        "settings.gain": TUNED.gain,
        "val/ap": "0.625",  # the set is data.val of the training
    }
    assert expected.items() <= tags.items() and "test/ap" not in tags
    loaded, before = (load_detector(one.model_uri, uri) for one in (version, former))
    assert loaded.score_thresholds == {"circle": 0.5} and not before.score_thresholds
    assert loaded.evaluate == {
        **before.evaluate,
        "nms_iou": 0.65,
        "class_agnostic": True,
        "max_detections": 12,
    }
    assert loaded.defaults.score_threshold == 0.1 and loaded.temperature == 2.0
    assert all((loaded.state[name] == value).all() for name, value in before.state.items())


def test_settings_of_a_folder_without_its_run_belong_to_a_new_run(
    registered: Registered, content: BundleContent, tmp_path: Path
) -> None:
    uri = registered.uri
    former = register(uri, registered.run_ids[1], replace(content, name="copied"))
    folder = fetch_model(former.model_uri, tmp_path, uri)
    client = connect(uri)
    client.delete_run(registered.run_ids[1])
    try:
        other = replace(TUNED, content_hash="e" * 64)
        version = register_tuned(uri, str(folder), "copied", other)
    finally:
        client.restore_run(registered.run_ids[1])
    tags = client.get_model_version("copied", str(version.version)).tags
    assert tags["run_id"] not in registered.run_ids
    # Not the set that selected the weights.
    assert tags["settings/ap"] == "0.625" and tags["data.val.fingerprint"] == "f" * 64
    card = client.get_model_version("copied", str(version.version)).description
    assert "## Settings of post-processing" in card and "- gain: ap +0.1250" in card
    assert "NMS at IoU 0.65 across classes, 12 detections at most" in card
    assert "0. circle: score threshold 0.500\n1. square\n" in card
    assert "## Settings" not in client.get_model_version("copied", str(former.version)).description


def joined(found: list[list[Detection]]) -> list[Detection]:
    return list(chain.from_iterable(found))


def test_predictions_use_the_threshold_of_each_class(
    registered: Registered, content: BundleContent, tmp_path: Path
) -> None:
    uri = registered.uri
    former = register(uri, registered.run_ids[0], replace(content, name="thresholds"))
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    everything = joined(load(former.model_uri, uri).detect_all(images, max_detections=1000))
    scores = {name: [] for name in content.classes}
    for one in everything:
        scores[one.class_name].append(one.score)
    limits = {name: sorted(values)[len(values) // 2] for name, values in scores.items()}
    assert limits["circle"] != limits["square"]
    tuned = replace(
        TUNED,
        class_agnostic=False,
        nms_iou=0.5,
        max_detections=1000,
        score_threshold=limits["square"],
        score_thresholds={"circle": limits["circle"]},
    )
    version = register_tuned(uri, former.model_uri, "thresholds", tuned)
    expected = [one for one in everything if one.score >= limits[one.class_name]]
    assert 0 < len(expected) < len(everything)
    predictor = load(version.model_uri, uri)
    assert joined(predictor.detect_all(images)) == expected
    assert joined(predictor.detect_all(images, score_threshold=0.0)) == everything
    # The thresholds are of uncalibrated scores.
    assert len(joined(predictor.detect_all(images, calibrated=True))) == len(expected)
    # The code of the bundle does the same.
    model = pyfunc.load_model(str(fetch_model(version.model_uri, tmp_path, uri)))
    defaults = {param.name: param.default for param in model.metadata.signature.params}
    assert defaults["score_threshold"] is None
    table = model.predict(pd.DataFrame({"image": images}))
    assert table["score"].tolist() == [one.score for one in expected]
    table = model.predict(pd.DataFrame({"image": images}), {"score_threshold": 0.0})
    assert len(table) == len(everything)
