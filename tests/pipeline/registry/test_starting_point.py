"""Registered versions as starting weights of a training."""

import pytest
import torch

from model import build_detector
from pipeline.config import Config
from pipeline.errors import OutageError, UserError
from pipeline.pretrained import check_start, read_weights, start_from
from tests.ports import free_port


def test_registered_version_starts_a_detector_with_other_classes(registered):
    version, there = registered.versions[0], registered.detectors[0]
    config = Config.from_dict(
        {"model": {"backbone": "slim", "image_size": 64, "init": version.model_uri}}
    )
    here = build_detector(**config.model.network(), num_classes=3)
    report = start_from(config, here, ["x", "y", "z"], registered.uri)
    assert report.source_classes == registered.classes[0]
    assert all(name.startswith("heads.classify.") for name in report.new_class_heads)
    theirs = there.state_dict()
    assert len(report.loaded) == len(theirs) - len(report.new_class_heads)
    assert all(torch.equal(here.state_dict()[name], theirs[name]) for name in report.loaded)


def test_missing_or_unsuitable_version_is_an_error_before_training(registered):
    base = {"backbone": "slim", "image_size": 64}
    for init, message in (
        ("models:/shapes/99", "has no version 99"),
        ("models:/absent@champion", "model 'absent' does not exist"),
        (
            registered.versions[1].model_uri,
            "is a detector on efficientnet_lite0, model.backbone is slim",
        ),
    ):
        config = Config.from_dict({"model": {**base, "init": init}})
        with pytest.raises(UserError, match=message):
            check_start(config, ["x"], registered.uri)


def test_registry_that_does_not_respond_is_an_outage(registered):
    config = Config.from_dict({"model": {"init": registered.versions[0].model_uri}})
    with pytest.raises(OutageError, match="cannot be reached"):
        check_start(config, ["x"], f"http://127.0.0.1:{free_port()}")


def test_sha256_cannot_be_combined_with_a_version(registered):
    with pytest.raises(UserError, match="init_sha256 is only for a file or a URL"):
        read_weights(registered.versions[0].model_uri, "0" * 64, registered.uri)
