"""A model version as a folder: weights, description, the code it needs, evaluation, model card.

Nothing is pickled: weights are safetensors, the rest is JSON and source code. ``model/`` and the
image decoding are copied into a package whose name is derived from the content, so several versions
can be loaded in one process and none needs this project to be installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

import model
from pipeline.config import Config, DetectorSpec
from pipeline.metrics.summary import EvaluationSummary
from pipeline.registry.description import DetectorDescription, PredictionDefaults
from pipeline.registry.model_card import DataSummary, model_card
from pipeline.tracking import config_yaml

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

_MODEL_CODE = Path(model.__file__).parent
# These files import nothing from this project.
_IMAGE_CODE = tuple(
    Path(__file__).resolve().parents[1] / "data" / "transforms" / name
    for name in ("decode.py", "resize.py")
)
_REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "safetensors",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
)
_HASH_BLOCK_BYTES, _HASH_LENGTH = 2**20, 16


@dataclass(frozen=True)
class BundleContent:
    """Everything that a training contributes to a model version."""

    name: str
    """The registered model of which this is a version."""
    weights: Mapping[str, Tensor]
    spec: DetectorSpec
    classes: Sequence[str]
    config: Config
    metrics: Mapping[str, float]
    temperature: float | None = None
    """Calibrates the scores, fitted on ``data.val``; None if nothing was."""
    figures: Sequence[Path] = field(default=())
    data: Sequence[DataSummary] = field(default=())
    """The sets of the training, where they are known."""
    summary: EvaluationSummary | None = None
    """The evaluation on ``data.test``, if there was one."""
    score_thresholds: Mapping[str, float] = field(default_factory=dict)
    """By class, of uncalibrated scores, instead of ``registry.score_threshold``."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Where the settings of post-processing came from, if they are not those of the training."""

    @property
    def defaults(self) -> PredictionDefaults:
        """Return the parameters of a prediction unless the caller sets them."""
        return PredictionDefaults(
            score_threshold=self.config.registry.score_threshold,
            nms_iou=self.config.evaluate.nms_iou,
            max_detections=self.config.evaluate.max_detections,
        )

    @property
    def settings_sha256(self) -> str | None:
        """Return a hash of the settings of post-processing; None for those of the training."""
        if not self.settings:
            return None
        given = [self.defaults.model_dump(), self.config.evaluate.class_agnostic]
        content = json.dumps([*given, dict(self.score_thresholds)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def write_bundle(
    content: BundleContent, origin: Mapping[str, str], folder: Path, run_id: str, model_id: str
) -> None:
    """Write an MLflow pyfunc model to ``folder`` that belongs to a run and a logged model.

    ``origin`` names the run, the revision and the data fingerprints.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as scratch:
        artifacts, code = _write_parts(content, origin, Path(scratch))
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(code)],
            signature=signature(content.defaults, bool(content.score_thresholds)),
            input_example=_example(content.spec.image_size),
            pip_requirements=requirements(content.spec.backbone),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )
    (folder / "README.md").write_text(
        model_card(content, origin), encoding="utf-8", errors="replace"
    )


def requirements(backbone: str) -> list[str]:
    """Return the packages that a loaded model imports, pinned to the installed versions."""
    names = (*_REQUIREMENTS, "timm") if backbone.startswith("timm:") else _REQUIREMENTS
    # Public indexes have no versions with a local part such as +cpu.
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in names}
    return [f"{name}=={version}" for name, version in versions.items()]


def signature(defaults: PredictionDefaults, by_class: bool = False) -> ModelSignature:
    """Return the signature: a column ``image`` -> the table of detections.

    With score thresholds ``by_class``, the parameter ``score_threshold`` is unset by default.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.long, "image")]
    outputs += [ColSpec(DataType.double, name) for name in ("x1", "y1", "x2", "y2", "score")]
    outputs += [ColSpec(DataType.long, "label"), ColSpec(DataType.string, "class_name")]
    params = [
        ParamSpec(
            "score_threshold", DataType.double, None if by_class else defaults.score_threshold
        ),
        ParamSpec("nms_iou", DataType.double, defaults.nms_iou),
        ParamSpec("max_detections", DataType.long, defaults.max_detections),
        ParamSpec("calibrated", DataType.boolean, False),
    ]
    return ModelSignature(
        # With a binary column, MLflow decodes base64 in some forms of requests and not in others,
        # and rejects arrays.
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema(outputs),
        params=ParamSchema(params),
    )


def _example(size: int) -> pd.DataFrame:
    """Return a grey image, for MLflow's page of the model and for testing a served model."""
    import pandas as pd

    file = io.BytesIO()
    Image.new("RGB", (size, size), "grey").save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _write_parts(
    content: BundleContent, origin: Mapping[str, str], scratch: Path
) -> tuple[dict[str, Path], Path]:
    """Write the artifacts and the code package. Return the artifacts by name, and the package."""
    from safetensors.torch import save_file

    weights = scratch / "weights.safetensors"
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in content.weights.items()}
    save_file(tensors, weights)
    package = f"detector_{_content_hash(weights, content.spec, content.classes)}"
    description = scratch / "detector.json"
    description.write_bytes(_describe(content, origin, package).encode(indent=2))
    evaluation = scratch / "evaluation.json"
    evaluation.write_text(json.dumps(dict(content.metrics), indent=2), encoding="utf-8")
    recipe = scratch / "config.yaml"
    recipe.write_text(config_yaml(content.config), encoding="utf-8")
    artifacts = {
        "weights": weights,
        "detector": description,
        "evaluation": evaluation,
        "config": recipe,
    }
    if content.figures:
        artifacts["figures"] = _copy_figures(content.figures, scratch / "figures")
    return artifacts, _write_code(scratch / package)


def _describe(
    content: BundleContent, origin: Mapping[str, str], package: str
) -> DetectorDescription:
    return DetectorDescription(
        package=package,
        spec=content.spec,
        classes=list(content.classes),
        fit=content.config.data.fit,
        defaults=content.defaults,
        score_thresholds=dict(content.score_thresholds),
        max_candidates=content.config.evaluate.max_candidates,
        class_agnostic=content.config.evaluate.class_agnostic,
        temperature=content.temperature,
        origin=dict(origin),
    )


def _copy_figures(figures: Sequence[Path], folder: Path) -> Path:
    folder.mkdir()
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    return folder


def _content_hash(weights: Path, spec: DetectorSpec, classes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    digest.update(json.dumps([spec.model_dump(), list(classes)], sort_keys=True).encode())
    for path in (*sorted(_MODEL_CODE.rglob("*.py")), *_IMAGE_CODE):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_HASH_LENGTH]


def _write_code(package: Path) -> Path:
    shutil.copytree(_MODEL_CODE, package / "model", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text(
        '"""The code of a registered detector."""\n', encoding="utf-8"
    )
    for source in _IMAGE_CODE:
        shutil.copyfile(source, package / source.name)
    return package
