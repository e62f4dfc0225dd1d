"""``meta.json``: typed, versioned, and readable where earlier versions wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model.anchor_shapes import AnchorShapes
from pipeline.checkpoints.format import load_meta, load_state, save_checkpoint
from pipeline.checkpoints.meta import (
    UNSCORED,
    BadSamplesState,
    CheckpointMeta,
    DataFingerprints,
    EarlyStoppingState,
)
from pipeline.config import DetectorSpec
from pipeline.storage.document import DocumentError
from tests.pipeline.checkpoints.examples import SPEC, example_meta, write_format_2

FORMAT_2 = {
    "step": 5,
    "epoch": 1.0,
    "world_size": 2,
    "score": 0.25,
    "classes": ["circle", "square"],
    "spec": {**SPEC, "num_classes": 2},
    "config": {"train": {"keep_checkpoints": 2}},
    "data": "abc",
    "data_val": "def",
}
STATE = {"model": {"x": torch.ones(2)}, "ema": {"x": torch.zeros(2)}, "step": 5}


def test_score_is_val_ap_or_below_every_score() -> None:
    assert example_meta(ap=0.3).score == 0.3
    assert example_meta().score == UNSCORED
    assert example_meta(metrics={}).score == UNSCORED  # evaluated, without objects to detect


def test_unknown_and_missing_fields_are_rejected() -> None:
    with pytest.raises(ValidationError, match="extra"):
        example_meta(score=0.5)
    content = example_meta().model_dump(mode="json")
    del content["classes"]
    with pytest.raises(DocumentError, match="classes: field required"):
        CheckpointMeta.from_content(content, "meta.json")


def test_all_fields_survive_a_file(tmp_path: Path) -> None:
    meta = example_meta(
        step=7,
        metrics={"val/ap": 0.1 + 0.2, "val/ap50": float("nan")},
        temperature=1.7,
        early_stopping=EarlyStoppingState(best=0.1 + 0.2, evaluations_since_best=3),
        data=DataFingerprints(train="a", val="b"),
        bad_samples=BadSamplesState(samples_read=9, occurrences=2, problems={"a: broken": 2}),
    )
    written = save_checkpoint(tmp_path, STATE, meta)
    read = load_meta(tmp_path)
    assert read.metrics is not None and read.metrics["val/ap"] == 0.1 + 0.2
    assert str(read) == str(written)  # NaN is not equal to itself
    assert (read.early_stopping, read.temperature) == (meta.early_stopping, 1.7)
    assert json.loads((tmp_path / "meta.json").read_text())["format_version"] == 5


def test_format_3_has_no_bad_samples() -> None:
    content = example_meta(step=7, ap=0.3).model_dump(mode="json")
    del content["bad_samples"]
    read = CheckpointMeta.from_content({**content, "format_version": 3}, "meta.json")
    assert read == example_meta(step=7, ap=0.3)


def test_format_4_has_the_anchors_of_the_paper() -> None:
    content = example_meta(step=7, ap=0.3).model_dump(mode="json")
    spec = {k: v for k, v in content["spec"].items() if not k.startswith("anchor_")}
    old = {**content, "spec": spec, "format_version": 4}
    assert CheckpointMeta.from_content(old, "meta.json").spec.anchor_shapes == AnchorShapes()


def test_spec_has_added_options_only_where_they_are_set() -> None:
    """So earlier versions read it, unless they cannot build the detector."""
    spec = DetectorSpec(**FORMAT_2["spec"])
    assert spec.neck_variant == "compact" and not spec.anchor_clamp
    added = {"neck_variant", "anchor_clamp", "strides", "head", "activation"}
    assert not added & set(spec.model_dump())
    published = spec.model_copy(update={"neck_variant": "published"})
    assert published.model_dump(mode="json")["neck_variant"] == "published"
    assert DetectorSpec(**json.loads(published.model_dump_json())) == published


def test_format_4_has_no_temperature() -> None:
    content = example_meta(step=7, ap=0.3).model_dump(mode="json")
    del content["temperature"]
    read = CheckpointMeta.from_content({**content, "format_version": 4}, "meta.json")
    assert read == example_meta(step=7, ap=0.3)


@pytest.mark.parametrize(
    ("more", "metrics", "early_stopping"),
    [
        # Evaluated; evaluated without objects to detect; not evaluated; without data.val.
        (
            {"val/ap": 0.25, "val/ap50": 0.5, "patience": {"best": 0.4, "waited": 2}},
            {"val/ap": 0.25, "val/ap50": 0.5},
            EarlyStoppingState(best=0.4, evaluations_since_best=2),
        ),
        (
            {"patience": {"best": -1.0, "waited": 0}},
            {},
            EarlyStoppingState(best=-1.0, evaluations_since_best=0),
        ),
        ({}, None, None),
    ],
)
def test_format_2_is_upgraded(
    tmp_path: Path,
    more: dict[str, Any],
    metrics: dict[str, float] | None,
    early_stopping: EarlyStoppingState | None,
) -> None:
    write_format_2(tmp_path, STATE, {**FORMAT_2, **more})
    meta = load_meta(tmp_path)
    assert (meta.metrics, meta.early_stopping) == (metrics, early_stopping)
    assert (meta.step, meta.epoch, meta.world_size) == (5, 1.0, 2)
    assert meta.classes == FORMAT_2["classes"] and meta.spec == DetectorSpec(**FORMAT_2["spec"])
    assert meta.data == DataFingerprints(train="abc", val="def")
    assert load_state(tmp_path)["step"] == 5
    assert len(meta.weights_sha256) == 64


def test_format_2_without_a_fingerprint_of_data_val_is_upgraded(tmp_path: Path) -> None:
    old = {key: value for key, value in FORMAT_2.items() if key != "data_val"}
    write_format_2(tmp_path, STATE, old)
    assert load_meta(tmp_path).data == DataFingerprints(train="abc", val=None)
