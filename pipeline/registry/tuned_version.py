"""A version with the weights of a model and other settings of post-processing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.registry.bundle import BundleContent
from pipeline.registry.load import fetch_model, find_version, load_detector, read_description
from pipeline.registry.register import RegisteredVersion, register
from pipeline.safe_yaml import load_yaml
from pipeline.storage.redact import mask
from pipeline.tracking import connect, create_run


@dataclass(frozen=True)
class TunedSettings:
    """Settings of post-processing, and the set on which they were found.

    ``changed`` says whether NMS or the number of detections differ from those of the training;
    ``metrics`` are those on the set, and ``gain`` is a text about the difference.
    """

    nms_iou: float
    class_agnostic: bool
    max_detections: int
    score_threshold: float | None
    score_thresholds: Mapping[str, float]
    changed: bool
    metrics: Mapping[str, float]
    gain: str
    data: str
    content_hash: str
    images: int

    def apply(self, content: BundleContent, model: str, val: str | None) -> BundleContent:
        """Return the content of a version with these settings instead of those of a ``model``.

        ``val`` is the content hash of the model's ``data.val``. Figures with other settings are
        replaced: by ``val/...`` if the set is ``data.val``, else by ``settings/...``.
        """
        fields: dict[str, Any] = {
            "evaluate.nms_iou": self.nms_iou,
            "evaluate.class_agnostic": self.class_agnostic,
            "evaluate.max_detections": self.max_detections,
        }
        if self.score_threshold is not None:
            fields["registry.score_threshold"] = self.score_threshold
        use = "val" if val == self.content_hash else "settings"
        measured = {f"{use}/{name}": value for name, value in self.metrics.items()}
        origin = {
            "settings.model": mask(model),
            "settings.data": f"{self.data}, {self.images} images",
            "settings.data.fingerprint": self.content_hash,
            "settings.date": datetime.now(UTC).date().isoformat(),
            "settings.gain": self.gain,
        }
        return replace(
            content,
            config=content.config.replace(fields),
            metrics=measured if self.changed else content.metrics,
            summary=None if self.changed else content.summary,
            score_thresholds=self.score_thresholds,
            settings={**content.settings, **origin},
        )


def register_tuned(uri: str, model: str, name: str, tuned: TunedSettings) -> RegisteredVersion:
    """Register a registered version, or the folder of one, with other settings, under a name.

    The new version belongs to the run of the former one if the store has it, else to a new run.
    Registering the same settings again returns the version that exists. Raises UserError.
    """
    if model.startswith("models:"):
        found, number = find_version(model, uri)
        model = f"models:/{found}/{number}"  # an alias may move
    loaded = load_detector(model, uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_model(model, Path(scratch), uri)
        origin = read_description(folder, model).origin
        artifacts = folder / "artifacts"
        config = Config.known_fields(load_yaml((artifacts / "config.yaml").read_bytes()))
        metrics = json.loads((artifacts / "evaluation.json").read_bytes())
    content = BundleContent(
        name=name,
        weights=loaded.state,
        spec=loaded.spec,
        classes=loaded.classes,
        config=config.replace({"registry.name": name}),
        metrics=metrics,
        temperature=loaded.temperature,
        # What a new run would not have.
        settings={key: value for key, value in origin.items() if key.startswith(("data.", "git."))},
    )
    content = tuned.apply(content, model, origin.get("data.val.fingerprint"))
    run_id = origin.get("run_id", "")
    if not is_active_run(uri, run_id):
        run_id = create_run(uri, content.config, f"settings of {name}", {"model": model})
        connect(uri).set_terminated(run_id)
    return register(uri, run_id, content)


def is_active_run(uri: str, run_id: str) -> bool:
    """Return whether the store at a URI has a run that was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        found = connect(uri).get_run(run_id)
    except (MlflowException, UserError):
        return False
    return bool(found.info.lifecycle_stage == "active")
